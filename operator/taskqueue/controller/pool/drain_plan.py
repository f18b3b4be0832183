"""How a worker pool shrinks without killing work: a pure plan, computed from the present state.

- A pod is removable when, as far as known, it has no work: none of its containers runs; its worker
  has stopped; or it is silent, and either the queue has long been unused, or other workers are
  heard and this pod is not even ready. (A worker that can take work registers at once, and the
  broker redelivers what a disconnected one had.) All other pods are drained first: idle ones before
  busy ones, and never more than the pool is to lose. A pod that has just started cannot be drained
  yet, and may be idle: for each of those one busy pod is spared, until it has reported or has been
  silent for too long.
- Pods without a controller do not belong to the pool. Pods beyond the replicas, as in a rollout,
  are not drained as surplus; the size is held while they may replace others.
- The operator lowers the replicas, but the controller chooses the pods to remove. So the replicas
  are lowered only as far as all pods that the controller would choose, in its own order, are
  removable: unassigned before assigned, Pending < Unknown < Running, not ready < ready, lower
  before higher pod-deletion-cost. Its further criteria (neighbours on the node, times) are not
  predicted: among equals the worst choice is assumed. A StatefulSet loses the highest ordinals.
- A cost counts in favour of removal once it is read back from the API, and against it once it is
  written. It also records which pods were picked, and survives a change of the leader.
- A drained worker takes no work again. If it is to stay after all, its pod is deleted, so that a
  fresh one replaces it.

What no plan can prevent: between the write and the controller's choice, a busy pod may become not
ready and then come before the drained ones. Its grace period protects its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskqueue.controller.pool.pool_members import PodOrder, PoolMember, WorkerKnowledge
from taskqueue.controller.pool.worker_registry import WorkerView
from taskqueue.model.pod import Pod

#: Costs below any that a user is likely to set. Two levels, because the controller chooses freely
#: among equals: a picked worker that is still busy must not equal one that may be removed.
GOES_NEXT = -(2**31)
PICKED = GOES_NEXT + 1

_DONE = frozenset({PodOrder.EMPTY, PodOrder.DRAINED})
_TO_COMMAND = frozenset({PodOrder.IDLE_BY_SILENCE, PodOrder.AT_WORK})
_UNHEARD = frozenset({PodOrder.EXPECTED, PodOrder.UNCLEAR})

#: Names shown in a message; more are counted.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class DeletionCostMark:
    """A pod-deletion-cost to write; None: to remove."""

    pod: Pod
    cost: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStep:
    """What to do now, in this order; then plan again.

    Attributes:
        drain: pods whose workers are to get the drain command, until they report that they drain.
        mark: deletion costs to write.
        replicas: the size to set.
        recycle: drained pods that are to stay: delete them (by uid), so that they are replaced.
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
    """Plan the next step towards ``target``; call it also while there is nothing to shrink.

    Args:
        pods: of the pool, as listed.
        workers: what they last reported, by pod.
        replicas: the size in place.
        target: the size wanted.
        unused: seconds since the queue last had a message at the broker or with a worker, as far
            as known; 0: it has one, or that is not known.
        listened: seconds for which heartbeats could arrive without a break.
        now: seconds on the clock of ``workers``.
        wall: seconds since the epoch.
        ordered: the pods are a StatefulSet's: the highest ordinals go.
        first_ordinal: its spec.ordinals.start.
    """
    know = WorkerKnowledge(workers, unused=unused, listened=listened, now=now, wall=wall)
    members = know.members([pod for pod in pods if pod.active and pod.owner])
    if ordered:
        members = [one for one in members if one.pod.ordinal is not None]
        picks = [one for one in members if one.ordinal >= first_ordinal + target]
    else:
        picks = _pick(members, _surplus(members, replicas, target))
    picked = {one.pod.uid for one in picks}
    kept = [one for one in members if one.pod.uid not in picked]
    # A drained container that has ended is started again by the kubelet, and comes back fresh.
    drained = [one for one in kept if one.standing is PodOrder.DRAINED and one.pod.started]
    recycle = drained[0 if ordered else _given_up(members, replicas) :]
    marks = () if ordered else tuple(_marks(picks, kept, recycle, settled=len(members) <= replicas))
    if target >= replicas:
        size = target
    elif ordered:
        size = _by_ordinal(members, replicas, target, first_ordinal)
    else:
        size = _by_order(members, marks, replicas, target)
    return DrainStep(
        drain=tuple(one.pod.name for one in picks if one.standing in _TO_COMMAND),
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


def _surplus(members: Sequence[PoolMember], replicas: int, target: int) -> int:
    """Return how many to pick: no more are drained than replicas are to be removed."""
    if target >= replicas:
        return 0
    if target == 0:
        return len(members)
    done = sum(one.standing in _DONE for one in members)
    return min(len(members), replicas) - target + min(done, _given_up(members, replicas))


def _given_up(members: Sequence[PoolMember], replicas: int) -> int:
    """Return how many pods the controller has yet to remove after a former plan.

    With one controller those are all pods beyond the replicas. With several, as in a rollout, that
    is not known: none are assumed, so that a drained pod may be replaced once too often.
    """
    return max(len(members) - replicas, 0) if _controllers(members) == 1 else 0


def _controllers(members: Sequence[PoolMember]) -> int:
    return len({one.pod.owner for one in members})


def _pick(members: Sequence[PoolMember], count: int) -> list[PoolMember]:
    """Choose which pods to remove, of those that can be drained.

    Pods that the controller would remove first in any case come before idle ones: a pod that is not
    ready precedes all others, and while it works none of them can be removed. A pod that was picked
    before is picked again: it may have the command already, and not have answered yet.

    A pod that is expected to report soon may turn out to be idle: no busy one is drained in its
    place.
    """
    able = [one for one in members if one.standing not in _UNHEARD]
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
    certain = count - sum(one.standing is PodOrder.EXPECTED for one in members)
    return [
        one
        for at, one in enumerate(able[: max(count, 0)])
        if at < certain or not _starts_to_drain_busy(one)
    ]


def _starts_to_drain_busy(member: PoolMember) -> bool:
    return member.standing is PodOrder.AT_WORK and member.busy > 0 and member.pod.cost > PICKED


def _by_order(
    members: Sequence[PoolMember], marks: Iterable[DeletionCostMark], replicas: int, target: int
) -> int:
    """Return the least size for which all pods that may be removed are removable."""
    sure = _surely_removable(members, marks)
    there = len(members)
    if _controllers(members) > 1 and sure < there:
        # The missing pods may belong to one controller, and the removed ones to another.
        there = max(there, replicas)
    return min(max(there - sure, target), replicas)


def _surely_removable(members: Sequence[PoolMember], marks: Iterable[DeletionCostMark]) -> int:
    """Return how many pods may be removed, whichever the controller chooses.

    The controller may have seen the marks of this plan or not: each counts in the worse way.
    In a rollout there is more than one ReplicaSet, and which of them shrinks is not predicted
    either: that many may be removed from any.
    """
    written = {mark.pod.uid: mark.cost or 0 for mark in marks}

    def worst(one: PoolMember) -> int:
        costs = one.pod.cost, written.get(one.pod.uid, one.pod.cost)
        return max(costs) if one.removable else min(costs)

    owners: dict[str, list[PoolMember]] = {}
    for one in members:
        owners.setdefault(one.pod.owner, []).append(one)
    sure = len(members)
    for group in owners.values():
        group.sort(key=lambda one: (one.rank, worst(one), one.removable))
        leading = next((at for at, one in enumerate(group) if not one.removable), None)
        if leading is not None:
            sure = min(sure, leading)
    return sure


def _by_ordinal(
    members: Sequence[PoolMember], replicas: int, target: int, first_ordinal: int
) -> int:
    """Return the least size for which all removed pods are removable.

    A StatefulSet that removes pods one by one stops at a pod that is not ready while another one is
    not ready either, so only one of those is removed at a time.
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
    picks: Sequence[PoolMember],
    kept: Sequence[PoolMember],
    recycle: Sequence[PoolMember],
    *,
    settled: bool,
) -> Iterable[DeletionCostMark]:
    """Return the costs to write.

    Until the controller has removed what a former plan allowed it to (``settled``), no pod is moved
    before or behind its place in that plan.
    """
    beside = {one.standing for one in picks if one.removable}
    staying = [one for one in picks if not one.removable]
    # When all pods are removed at once, or are about to be, the order does not matter.
    if kept or (staying and (beside or any(one.busy for one in staying))):
        for one in picks:
            # An idle pod will have stopped when the cost is read back, unless it gets work: while
            # others are removable, it must not be their equal. One that already is stays so, but
            # not beside an empty pod: that may start before the controller chooses.
            early = (settled and not beside) or (
                one.pod.cost == GOES_NEXT and PodOrder.EMPTY not in beside
            )
            goes = one.removable or (one.busy == 0 and early)
            cost = GOES_NEXT if goes else PICKED
            if one.pod.cost != cost:
                yield DeletionCostMark(one.pod, cost)
    for one in kept:
        if settled and one.pod.cost <= PICKED and one not in recycle:
            yield DeletionCostMark(one.pod, None)


def _waiting_for(
    picks: Sequence[PoolMember],
    kept: Sequence[PoolMember],
    *,
    surplus: int,
    extra: int,
    controllers: int,
) -> str:
    if surplus <= 0:
        return ""
    # Of the pods that are not picked, only those before the picked ones are in the way.
    ahead = [one for one in kept if not one.pod.ready or len(picks) < surplus]
    unclear = [one for one in (*picks, *ahead) if one.standing in _UNHEARD]
    staying = [one for one in picks if not one.removable and one not in unclear]
    waits = [
        f"{_names(who)} {what}"
        for who, what in (
            ([one for one in staying if one.busy], "to finish"),
            ([one for one in staying if not one.busy], "to stop"),
            (unclear, "to say whether work is left (a container runs, and no heartbeat comes)"),
            (
                [one for one in ahead if one.standing is PodOrder.AT_WORK and not one.pod.ready],
                "to be ready again (it works, and would be removed first)",
            ),
        )
        if who
    ]
    if controllers > 1:
        waits.append(f"the rollout to end (the pods are {controllers} controllers')")
    elif extra:
        waits.append(f"the controller to remove {extra} beyond the replicas")
    return f"{surplus} more to go: waits for " + (
        ", for ".join(waits) or "the deletion costs to be in place"
    )


def _names(members: Sequence[PoolMember]) -> str:
    shown = ", ".join(sorted(one.pod.name for one in members)[:_NAMED])
    more = len(members) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
