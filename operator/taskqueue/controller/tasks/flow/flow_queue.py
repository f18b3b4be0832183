"""The dispatch queue of a TaskQueue with spec.flow: shares, rates, ageing and a most that wait.

All other TaskQueues have a `PriorityQueue`, with the same methods, which knows priority and age
alone.

* Fairness keys share by weight (`FairQueue`). Priority orders the Tasks of one key.
* A Task is given when all rate limits let an attempt of its key pass. It counts when its attempt
  is dispatched (`take`), not before: in between its payload may have to be read.
* At most ``max_waiting`` Tasks wait for their turn. The others wait for a place, in the same order,
  and are Blocked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from taskqueue.controller.tasks.flow.fair_queue import FairQueue
from taskqueue.controller.tasks.flow.rate_limiter import RateLimiter
from taskqueue.model.flow import FlowPolicy
from taskqueue.model.task import Task

#: Of what waits for a rate limit, what may pass in this time asks for workers, in seconds.
_DEMAND_SECONDS = 60
#: What may pass in this time may be at the broker before a worker has room for it, in seconds.
_AHEAD_SECONDS = 1.0


class FlowQueue:
    """The waiting Tasks of one TaskQueue, by uid; see the module.

    All times but those of Tasks are seconds of one clock that never jumps.

    Args:
        policy: of the TaskQueue.
        rates: its rate limits, which outlive a change of the policy.
    """

    def __init__(self, policy: FlowPolicy, rates: RateLimiter) -> None:
        self.policy = policy
        self._rates = rates
        self._turns: FairQueue[str] = FairQueue(policy.weight_of)
        self._places: FairQueue[str] = FairQueue(policy.weight_of)
        #: The fairness keys of Tasks that were given, until they are dispatched or come back.
        self._given: dict[str, str] = {}

    def __len__(self) -> int:
        """Return how many Tasks wait for their turn."""
        return len(self._turns)

    def __iter__(self) -> Iterator[str]:
        yield from self._turns
        yield from self._places

    @property
    def places(self) -> Collection[str]:
        """The Tasks that wait for their turn."""
        return self._turns.places

    @property
    def without_place(self) -> int:
        """How many Tasks wait for a place."""
        return len(self._places)

    def queue_up(self, task: Task) -> bool:
        """Let a Task wait; return whether for its turn, and not for a place."""
        came_back = task.uid in self._given
        self.discard(task.uid)
        most = self.policy.max_waiting
        has_place = came_back or most is None or len(self._turns) < most
        spec = task.spec
        since = max(task.created, spec.start_after or 0.0)
        (self._turns if has_place else self._places).add(
            task.uid,
            rank=self.policy.rank(spec.priority, since),
            created=task.created,
            group=self.group_of(task),
        )
        return has_place

    def group_of(self, task: Task) -> str:
        """Return the fairness key of a Task."""
        fairness = self.policy.fairness
        return "" if fairness is None else task.label(fairness.label)

    def discard(self, uid: str) -> None:
        """Remove a Task, if it waits."""
        given = self._given.pop(uid, None)
        if given is not None:
            self._turns.refund(given)
        elif not self._places.discard(uid):
            self._turns.discard(uid)
            self._fill()

    def pop_next(self, now: float) -> str | None:
        """Remove and return the Task whose turn it is; None: none may be dispatched now."""
        if self._rates.wait_seconds_of_all(now):
            return None
        while (group := self._turns.next_group(now)) is not None:
            wait = self._rates.wait_seconds(group, now)
            if not wait:
                uid = self._turns.pop(group)
                self._given[uid] = group
                self._fill()
                return uid
            self._turns.set_aside(group, now + wait)
        return None

    def take(self, task: Task, now: float) -> bool:
        """Count an attempt as dispatched, if the limits let it pass; return whether they do.

        If not, the Task is to be queued again.
        """
        if not self._rates.take(self._given.get(task.uid) or self.group_of(task), now):
            return False
        self._given.pop(task.uid, None)
        return True

    def wait_seconds(self, now: float) -> float | None:
        """Return how long `pop_next` gives nothing though Tasks wait; None: none do."""
        if not len(self):
            return None
        whole = self._rates.wait_seconds_of_all(now)
        if whole or self._turns.next_group(now) is not None:
            return whole
        end = self._turns.end_of_break()
        return 0.0 if end is None else max(end - now, 0.0)

    def limited_by(self, now: float) -> str:
        """Return the name of a rate limit that holds all that waits back; "": none does."""
        if not self.wait_seconds(now):
            return ""
        group = self._turns.first_set_aside() or ""
        return self._rates.blocking(group, now)

    def window(self, window: int, slots: int) -> int:
        """Return how many Tasks may be at the broker, where that many could be without limits.

        What is there is run as soon as there are workers: a rate that holds when Tasks are
        dispatched must hold then, too.
        """
        limits = self.policy.rate_limits
        if not limits:
            return window
        passing = (math.ceil(_AHEAD_SECONDS / one.interval) for one in limits if not one.per_key)
        return min(window, max(1, 2 * slots, min(passing, default=0)))

    @property
    def excess(self) -> int:
        """How many that wait ask for no worker, because a rate limit lets them pass much later."""
        whole = (one for one in self.policy.rate_limits if not one.per_key)
        most = (one.burst + math.ceil(_DEMAND_SECONDS / one.interval) for one in whole)
        return max(len(self) - min(most, default=len(self)), 0)

    def _fill(self) -> None:
        """Give free places to those that wait for one."""
        most = self.policy.max_waiting
        while most is not None and len(self._turns) < most:
            group = self._places.next_group(0.0)
            if group is None:
                return
            uid, rank, created = self._places.pop_entry(group)
            self._turns.add(uid, rank=rank, created=created, group=group)
