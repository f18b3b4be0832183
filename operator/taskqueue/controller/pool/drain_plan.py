"""How a worker pool shrinks without killing work: a pure plan, made anew from what is seen.

- A pod is removable when it has no work as far as is known: no container of it runs, its worker has
  stopped, or it stays silent and either the queue is long unused, or others are heard and it is not
  even ready: a worker that can take work registers at once, and what one had that was cut off the
  broker gives to others. All others are first picked to be drained: the idle before the busy, and
  never more than are to go.
- Pods that nothing controls are no part of the pool. What a rollout, or whatever else, has beyond
  the replicas is no surplus to be told to go; but the size is held while it may stand for others.
- Who lowers the replicas does not say which pods go, the controller does. The replicas are
  lowered only so far that all pods it would take, in its own order, are removable: an unassigned
  pod before an assigned one, Pending < Unknown < Running, not ready < ready, lower before higher
  pod-deletion-cost. What it goes by next (neighbours on the node, times) is not foreseen: of equals
  the worst is assumed. A StatefulSet takes the highest ordinals.
- A cost counts for removal from when it is read back from the API, and against it from when it is
  written. It is also the memory of whom was picked, and survives a change of the leader.
- A drained worker takes no work again. When it is not to go after all, its pod is to be deleted, so
  that a fresh one comes.

What no plan can prevent: between the write and the controller's look a pod that works may become
not ready, and then comes before the drained ones. Its grace period is what protects its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from taskqueue.controller.pool.worker_registry import LOST_SECONDS, WorkerView
from taskqueue.model.pod import PENDING, RUNNING, UNKNOWN, Pod
from taskqueue.model.worker import WorkerState

#: Costs below any that a user is likely to give. Two levels, because the controller chooses
#: freely among equals: a picked worker that is still busy must not equal one that may go.
GOES_NEXT = -(2**31)
PICKED = GOES_NEXT + 1

_PHASES = {PENDING: 0, UNKNOWN: 1, RUNNING: 2}

#: Unused for so long, a queue has nothing with any worker: what the broker tells of it may have
#: been counted 10 s before it was read, and is read anew within 15 s.
UNUSED_SECONDS = 25.0

#: More names than this are counted.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class DeletionCostMark:
    """A pod-deletion-cost to write; None: to take away."""

    pod: Pod
    cost: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStep:
    """What to do now, in this order; then plan again from what is seen then.

    Attributes:
        drain: pods whose workers are to be told, again until they say that they drain.
        mark: deletion costs to write.
        replicas: the size to set.
        recycle: drained pods that are not to go, to be deleted (by uid) and so replaced.
        waiting_for: why ``replicas`` is above the target, in one line; "": it is not.
    """

    drain: tuple[str, ...] = ()
    mark: tuple[DeletionCostMark, ...] = ()
    replicas: int
    recycle: tuple[Pod, ...] = ()
    waiting_for: str = ""


def plan(
    pods: Iterable[Pod],
    workers: Mapping[str, WorkerView],
    *,
    replicas: int,
    target: int,
    unused: float,
    listened: float,
    now: float,
    wall: float,
    ordered: bool = False,
    first_ordinal: int = 0,
) -> DrainStep:
    """Plan the next step towards ``target``; also to be asked while there is nothing to shrink.

    Args:
        pods: of the pool, as listed.
        workers: what was last heard, by pod.
        replicas: the size in place.
        target: the size wanted.
        unused: for so many seconds nothing of the queue has been at the broker or with a worker,
            as far as is known; 0: there is something, or it is not known.
        listened: seconds for which heartbeats could be heard without a break.
        now: seconds on the clock of ``workers``.
        wall: seconds since the epoch.
        ordered: the pods are a StatefulSet's: the highest ordinals go.
        first_ordinal: its spec.ordinals.start.
    """
    know = _WorkerKnowledge(workers, unused=unused, listened=listened, now=now, wall=wall)
    members = know.members([pod for pod in pods if pod.active and pod.owner])
    if ordered:
        members = [one for one in members if one.pod.ordinal is not None]
        picks = [one for one in members if one.ordinal >= first_ordinal + target]
    else:
        picks = _pick(members, _surplus(members, replicas, target))
    picked = {one.pod.uid for one in picks}
    kept = [one for one in members if one.pod.uid not in picked]
    # A drained container that has ended is started again by the kubelet, and comes back fresh.
    drained = [one for one in kept if one.standing is _PodOrder.DRAINED and one.pod.started]
    recycle = drained[0 if ordered else _given_up(members, replicas) :]
    marks = () if ordered else tuple(_marks(picks, kept, recycle, settled=len(members) <= replicas))
    if target >= replicas:
        size = target
    elif ordered:
        size = _by_ordinal(members, replicas, target, first_ordinal)
    else:
        size = _by_order(members, marks, replicas, target)
    return DrainStep(
        drain=tuple(one.pod.name for one in picks if one.standing in _TO_TELL),
        mark=marks,
        replicas=size,
        recycle=tuple(one.pod for one in recycle),
        waiting_for=_waiting_for(
            picks,
            kept,
            surplus=size - target,
            extra=max(len(members) - replicas, 0),
            controllers=_controllers(members),
        ),
    )


class _PodOrder(IntEnum):
    """How a pod stands to its work, in the order in which pods are picked to go."""

    EMPTY = 0  # no container runs
    DRAINED = 1
    DRAINING = 2
    IDLE_BY_SILENCE = 3  # silent long enough, where silence means that it has no work
    AT_WORK = 4  # takes work, whether it has some or not
    UNCLEAR = 5  # runs and says nothing: it may have work, and cannot be told to drain


_REMOVABLE = frozenset({_PodOrder.EMPTY, _PodOrder.DRAINED, _PodOrder.IDLE_BY_SILENCE})
_DONE = frozenset({_PodOrder.EMPTY, _PodOrder.DRAINED})
_TO_TELL = frozenset({_PodOrder.IDLE_BY_SILENCE, _PodOrder.AT_WORK})


@dataclass(frozen=True, slots=True)
class _Member:
    pod: Pod
    standing: _PodOrder
    busy: int

    @property
    def removable(self) -> bool:
        return self.standing in _REMOVABLE

    @property
    def ordinal(self) -> int:
        return -1 if self.pod.ordinal is None else self.pod.ordinal

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """What the controller goes by before the cost."""
        return self.pod.assigned, _PHASES.get(self.pod.phase, 0), self.pod.ready


@dataclass(frozen=True, slots=True)
class _WorkerKnowledge:
    workers: Mapping[str, WorkerView]
    unused: float = field(kw_only=True)
    listened: float = field(kw_only=True)
    now: float = field(kw_only=True)
    wall: float = field(kw_only=True)

    def members(self, pods: Sequence[Pod]) -> list[_Member]:
        views = {pod.uid: self._view(pod) for pod in pods}
        others_are_heard = any(view is not None for view in views.values())
        return [
            _Member(
                pod,
                self._standing(pod, view, others_are_heard),
                0 if view is None else view.busy,
            )
            for pod in pods
            for view in [views[pod.uid]]
        ]

    def _view(self, pod: Pod) -> WorkerView | None:
        view = self.workers.get(pod.name)
        return None if view is None or self._of_a_former_process(view, pod) else view

    def _standing(self, pod: Pod, view: WorkerView | None, others_are_heard: bool) -> _PodOrder:
        if view is None:
            if not pod.started:
                return _PodOrder.EMPTY
            silent = min(self.listened, self._age(pod))
            # Whatever is in use is somebody's, and it may be this one's.
            idle = self.unused >= UNUSED_SECONDS or (others_are_heard and not pod.ready)
            if idle and silent >= LOST_SECONDS:
                return _PodOrder.IDLE_BY_SILENCE
            return _PodOrder.UNCLEAR
        if view.state is WorkerState.STOPPED:
            return _PodOrder.DRAINED
        if view.state is WorkerState.DRAINING:
            return _PodOrder.DRAINING
        return _PodOrder.AT_WORK

    def _age(self, pod: Pod) -> float:
        """Seconds since its container began; one begun in the future has a clock of its own."""
        age = self.wall - (pod.running_since or 0.0)
        return age if age >= 0 else float("inf")

    def _of_a_former_process(self, view: WorkerView, pod: Pod) -> bool:
        """Tell whether a container has begun since: its process takes work, drained or not."""
        if not pod.started:
            return False
        # A container's begin is rounded down by up to a second. Of a worker that has stopped it
        # must be sure that it was this one; any other is known too well to be called silent.
        margin = 1.0 if view.state is WorkerState.STOPPED else 0.0
        return self._age(pod) < self.now - view.seen + margin


def _surplus(members: Sequence[_Member], replicas: int, target: int) -> int:
    """Return how many are to be picked: no more are drained than there are replicas to go."""
    if target >= replicas:
        return 0
    if target == 0:
        return len(members)
    done = sum(one.standing in _DONE for one in members)
    return min(len(members), replicas) - target + min(done, _given_up(members, replicas))


def _given_up(members: Sequence[_Member], replicas: int) -> int:
    """Return how many pods the controller has yet to remove, because a former plan gave them up.

    With one controller those are all that are too many. With several, as in a rollout, it cannot be
    told: none are taken for given up, and a drained one is rather replaced once too often.
    """
    return max(len(members) - replicas, 0) if _controllers(members) == 1 else 0


def _controllers(members: Sequence[_Member]) -> int:
    return len({one.pod.owner for one in members})


def _pick(members: Sequence[_Member], count: int) -> list[_Member]:
    """Choose who is to go, of those who can.

    Those whom the controller would take first in any case come before the idle: a pod that is not
    ready stands in front of all others, and while it works none of them can go. Who was picked
    before is picked again: it may have been told already, and not have answered yet.
    """
    able = [one for one in members if one.standing is not _PodOrder.UNCLEAR]
    able.sort(
        key=lambda one: (
            one.standing,
            one.rank,
            one.pod.cost > PICKED,
            one.busy,
            -one.pod.created,
            one.pod.name,
        )
    )
    return able[: max(count, 0)]


def _by_order(
    members: Sequence[_Member], marks: Iterable[DeletionCostMark], replicas: int, target: int
) -> int:
    """Return the least size down to which all that may go are removable."""
    sure = _surely_removable(members, marks)
    there = len(members)
    if _controllers(members) > 1 and sure < there:
        # The pods that do not exist may be one's, and those that are to go the other's.
        there = max(there, replicas)
    return min(max(there - sure, target), replicas)


def _surely_removable(members: Sequence[_Member], marks: Iterable[DeletionCostMark]) -> int:
    """Return how many pods the controller may take, whichever it takes, and all are removable.

    The marks of this plan may be seen by then or not: each counts as is worse.
    While a Deployment is rolled out there is more than one ReplicaSet, and which of them is to give
    is not foreseen either: so many may go of any.
    """
    written = {mark.pod.uid: mark.cost or 0 for mark in marks}

    def worst(one: _Member) -> int:
        costs = one.pod.cost, written.get(one.pod.uid, one.pod.cost)
        return max(costs) if one.removable else min(costs)

    owners: dict[str, list[_Member]] = {}
    for one in members:
        owners.setdefault(one.pod.owner, []).append(one)
    sure = len(members)
    for group in owners.values():
        group.sort(key=lambda one: (one.rank, worst(one), one.removable))
        leading = next((at for at, one in enumerate(group) if not one.removable), None)
        if leading is not None:
            sure = min(sure, leading)
    return sure


def _by_ordinal(members: Sequence[_Member], replicas: int, target: int, first_ordinal: int) -> int:
    """Return the least size down to which all that go are removable.

    A StatefulSet whose pods go one by one stops at a pod that is not ready when another one is not
    either: of those only one is given up at a time.
    """
    at = {one.ordinal: one for one in members}
    condemned = [one for one in members if one.ordinal >= first_ordinal + replicas]
    unready = any(not one.pod.ready for one in condemned)
    size = replicas
    while size > target:
        one = at.get(first_ordinal + size - 1)
        if one is not None:
            if not one.removable or (unready and not one.pod.ready):
                break
            unready = unready or not one.pod.ready
        size -= 1
    return size


def _marks(
    picks: Sequence[_Member],
    kept: Sequence[_Member],
    recycle: Sequence[_Member],
    *,
    settled: bool,
) -> Iterable[DeletionCostMark]:
    """Return the costs to write.

    Until the controller has settled, having removed what a former plan gave up, no pod is made to
    go earlier or later than that plan supposed.
    """
    beside = {one.standing for one in picks if one.removable}
    staying = [one for one in picks if not one.removable]
    # When all go at once, or are about to, the order is nothing to the controller.
    if kept or (staying and (beside or any(one.busy for one in staying))):
        for one in picks:
            # An idle one will have stopped when the cost is read back, unless it gets work: as
            # long as others may go, it is not to be their equal. One that was before is let be,
            # but not beside an empty one: that may start before the controller looks.
            early = (settled and not beside) or (
                one.pod.cost == GOES_NEXT and _PodOrder.EMPTY not in beside
            )
            goes = one.removable or (one.busy == 0 and early)
            cost = GOES_NEXT if goes else PICKED
            if one.pod.cost != cost:
                yield DeletionCostMark(one.pod, cost)
    for one in kept:
        if settled and one.pod.cost <= PICKED and one not in recycle:
            yield DeletionCostMark(one.pod, None)


def _waiting_for(
    picks: Sequence[_Member],
    kept: Sequence[_Member],
    *,
    surplus: int,
    extra: int,
    controllers: int,
) -> str:
    if surplus <= 0:
        return ""
    # Of those that are not picked, only who stands in front of the picked ones is in the way.
    ahead = [one for one in kept if not one.pod.ready or len(picks) < surplus]
    unclear = [one for one in (*picks, *ahead) if one.standing is _PodOrder.UNCLEAR]
    staying = [one for one in picks if not one.removable and one not in unclear]
    told = [
        f"{_names(who)} {what}"
        for who, what in (
            ([one for one in staying if one.busy], "to finish"),
            ([one for one in staying if not one.busy], "to stop"),
            (unclear, "to say whether work is left (a container runs, and no heartbeat comes)"),
            (
                [one for one in ahead if one.standing is _PodOrder.AT_WORK and not one.pod.ready],
                "to be ready again (it works, and would be removed first)",
            ),
        )
        if who
    ]
    if controllers > 1:
        told.append(f"the rollout to end (the pods are {controllers} controllers')")
    elif extra:
        told.append(f"the controller to remove {extra} beyond the replicas")
    return f"{surplus} more to go: waits for " + (
        ", for ".join(told) or "the deletion costs to be in place"
    )


def _names(members: Sequence[_Member]) -> str:
    shown = ", ".join(sorted(one.pod.name for one in members)[:_NAMED])
    more = len(members) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
