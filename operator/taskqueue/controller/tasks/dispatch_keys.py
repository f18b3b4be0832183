"""The concurrency keys of one dispatcher: who has them, who waits, which are held, who needs none.

A key is held for an attempt that is being stopped: it may run until its worker has answered, or for
a limited time. Nobody else gets the key until then.

A thousand Tasks of one key are run one after the other, so they need one worker: of those in the
dispatch queue, `DispatchKeys.excess` are too many to be dispatched now.

Where Tasks of a key do not simply wait for each other, `key_conflicts` says which of them end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from taskqueue.controller.tasks.concurrency_keys import KeySlots
from taskqueue.controller.tasks.events import ConflictLost
from taskqueue.controller.tasks.flow.key_conflicts import (
    Contender,
    Order,
    Standing,
    losers,
    may_outdo,
    order_of,
    standing_of,
)
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.flow import ConcurrencyPolicy, OnConflict
from taskqueue.model.task import Task


class DispatchKeys:
    """The keys of one dispatcher; see the module.

    Args:
        tasks: the unfinished Tasks by uid.
        on_granted: called with the uid of a Task that has waited for its key and has it now.
        on_lost: called with the uid of a Task that ends because of another of its key.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, TrackedTask],
        on_granted: Callable[[str], None],
        on_lost: Callable[[str, ConflictLost], None],
    ) -> None:
        self._tasks = tasks
        self._on_granted = on_granted
        self._on_lost = on_lost
        self._policy = ConcurrencyPolicy()
        #: Whether Tasks of a key do not simply wait for each other.
        self.contend_for_keys = False
        #: Then: the Tasks of each key, the place of each among them, and those that others may lose
        #: to. There may be many that are held.
        self._contenders: dict[str, dict[str, Order]] = {}
        self._active: dict[str, set[str]] = {}
        self._key_of: dict[str, str] = {}
        #: Holders are uids, and tokens of attempts that were recalled and may still run.
        self._slots: KeySlots[str] = KeySlots()
        #: Key and timer by token.
        self.holds: dict[str, tuple[str, asyncio.TimerHandle]] = {}
        #: The keys of Tasks in the dispatch queue, by uid. While it is empty, as without keys,
        #: nothing of this need be asked.
        self.queued: dict[str, str] = {}
        self._queued_of: dict[str, int] = {}
        #: Keys that several in the dispatch queue have. One that is alone has its turn soon, and is
        #: Blocked then if it does not get the key.
        self._crowded: set[str] = set()

    def has_room(self, key: str, uid: str) -> bool:
        """Return whether a Task has the key, or would get it now."""
        return self._slots.has_room(key, uid, limit=self._policy.limit_of(key))

    def claim(self, key: str, uid: str) -> bool:
        """Give the key to a Task, if it has room; return whether it has it."""
        return self._slots.claim(key, uid, limit=self._policy.limit_of(key))

    def assign(self, key: str, uid: str) -> None:
        """Give the key to a Task whose claim is on record."""
        self._slots.assign(key, uid)

    def enqueue(self, key: str, task: Task) -> None:
        """Let a Task wait for the key."""
        self._slots.enqueue(key, task.uid, priority=task.spec.priority, created=task.created)

    def release(self, key: str, uid: str) -> None:
        """Take a key from a Task that holds it or waits for it."""
        self._slots.stop_waiting(key, uid)
        self._free(key, uid)

    def configure(self, policy: ConcurrencyPolicy, uids: Iterable[str]) -> None:
        """Apply a policy to the Tasks of the queue."""
        before, self._policy = self._policy, policy
        for key in self._slots.keys_waited_for:
            self._grant(key)
        self.contend_for_keys = policy.on_conflict is not OnConflict.QUEUE
        if policy.on_conflict is not before.on_conflict:
            self._contenders, self._active, self._key_of = {}, {}, {}
            for uid in list(uids) if self.contend_for_keys else ():
                if uid in self._tasks:
                    self.contend(uid)

    def contend(self, uid: str) -> None:
        """Take note that a Task waits, is held or is dispatched; have those end that lose."""
        tracked = self._tasks[uid]
        key = tracked.task.spec.concurrency_key
        if self._key_of.get(uid) != key:
            self.leave(uid)
        if not key:
            return
        self._key_of[uid] = key
        orders = self._contenders.setdefault(key, {})
        orders.setdefault(uid, order_of(tracked))
        standing, policy = standing_of(tracked), self._policy.on_conflict
        active = self._active.setdefault(key, set())
        if may_outdo(policy, standing):
            active.add(uid)
        else:
            active.discard(uid)
        uids = orders if standing is Standing.DISPATCHED else active | {uid}
        found = [Contender(one, orders[one], standing_of(self._tasks[one])) for one in uids]
        for lost, other in losers(policy, found):
            self._on_lost(lost.uid, ConflictLost(self._tasks[other.uid].task.name, policy))

    def leave(self, uid: str) -> None:
        """Take note that a Task has no key any more, or is not dispatched any more."""
        key = self._key_of.pop(uid, None)
        if key is not None:
            del self._contenders[key][uid]
            self._active[key].discard(uid)
            if not self._contenders[key]:
                del self._contenders[key], self._active[key]

    # Keys that are held for attempts.

    def hold(self, key: str, token: str, seconds: float) -> None:
        """Keep a key for an attempt that is being stopped, until it is answered or this long."""
        self._slots.assign(key, token)
        timer = asyncio.get_running_loop().call_later(seconds, self.end_hold, token)
        self.holds[token] = (key, timer)

    def prolong_hold(self, token: str) -> None:
        """Keep the key that is held for an attempt: its worker has just said that it runs."""
        hold = self.holds.get(token)
        if hold is not None:
            key, timer = hold
            loop = asyncio.get_running_loop()
            if timer.when() < loop.time() + WORKER_LOST_SECONDS:
                timer.cancel()
                timer = loop.call_later(WORKER_LOST_SECONDS, self.end_hold, token)
                self.holds[token] = (key, timer)

    def end_hold(self, token: str) -> None:
        """Take note that no worker has this attempt any more."""
        hold = self.holds.pop(token, None)
        if hold is not None:
            key, timer = hold
            timer.cancel()
            self._free(key, token)

    # Who asks for a worker.

    def on_queued(self, uid: str, key: str) -> None:
        """Take note that a Task with a key is in the dispatch queue."""
        self.on_dequeued(uid)
        self.queued[uid] = key
        number = self._queued_of[key] = self._queued_of.get(key, 0) + 1
        if number > 1:
            self._crowded.add(key)

    def on_dequeued(self, uid: str) -> None:
        """Take note that a Task is in the dispatch queue no more."""
        key = self.queued.pop(uid, None)
        if key is None:
            return
        self._queued_of[key] -= 1
        if self._queued_of[key] < 2:
            self._crowded.discard(key)
        if not self._queued_of[key]:
            del self._queued_of[key]

    @property
    def excess(self) -> int:
        """How many in the dispatch queue will not get their key before others have given it up."""
        return sum(max(self._queued_of[key] - self._room(key), 0) for key in self._crowded)

    def _room(self, key: str) -> int:
        """Return how many in the dispatch queue may have a key, those that have it among them."""
        holders = self._slots.holders(key)
        waiting = sum(one in self.queued for one in holders)
        return max(self._policy.limit_of(key) - len(holders), 0) + waiting

    def _free(self, key: str, holder: str) -> None:
        self._slots.release(key, holder)
        self._grant(key)

    def _grant(self, key: str) -> None:
        """Give the key to those that wait, as many as may have it."""
        while (uid := self._slots.pop_next(key, limit=self._policy.limit_of(key))) is not None:
            self._slots.assign(key, uid)  # or the next would find room too
            self._on_granted(uid)
