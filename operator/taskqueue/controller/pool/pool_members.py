"""What is known of each pod of a worker pool: whether it has work, as far as its reports show.

Pure. A worker that can take work registers at once, so a pod that has been silent for long has
none, if the queue has been unused for as long or the pod is not even ready.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from taskqueue.controller.pool.worker_registry import WorkerView
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.pod import PENDING, RUNNING, UNKNOWN, Pod
from taskqueue.model.worker import WorkerState

_PHASES = {PENDING: 0, UNKNOWN: 1, RUNNING: 2}

#: After this long unused, no worker has a message of the queue: the broker's statistics may be 10 s
#: old when they are read, and are read at least every 15 s.
UNUSED_SECONDS = 25.0


class PodOrder(IntEnum):
    """What a pod has to do with work, in the order in which pods are picked for removal."""

    EMPTY = 0  # no container runs
    DRAINED = 1
    DRAINING = 2
    IDLE_BY_SILENCE = 3  # silent for long enough to have no work
    AT_WORK = 4  # takes work, busy or not
    EXPECTED = 5  # has reported nothing yet: it, or this operator, has just started
    UNCLEAR = 6  # runs and reports nothing: it may have work, and no command reaches it


_REMOVABLE = frozenset({PodOrder.EMPTY, PodOrder.DRAINED, PodOrder.IDLE_BY_SILENCE})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerObservations:
    """What the operator knows about the workers beyond their pods.

    Attributes:
        views: what they last reported, by pod.
        unused: seconds since the queue last had a message at the broker or with a worker, as far
            as known; 0: it has one, or that is not known.
        listened: seconds for which heartbeats could arrive without a break.
        consumers: of the work queue at the broker; None: unknown.
    """

    views: Mapping[str, WorkerView]
    unused: float
    listened: float
    consumers: int | None = None


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A pod of the pool, what it has to do with work, and how many attempts it runs."""

    pod: Pod
    standing: PodOrder
    busy: int

    @property
    def removable(self) -> bool:
        """Whether it has no work, as far as known."""
        return self.standing in _REMOVABLE

    @property
    def ordinal(self) -> int:
        """Its ordinal in a StatefulSet; -1: it has none."""
        return -1 if self.pod.ordinal is None else self.pod.ordinal

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """What the controller compares before the cost."""
        return self.pod.assigned, _PHASES.get(self.pod.phase, 0), self.pod.ready


@dataclass(frozen=True, slots=True)
class WorkerKnowledge:
    """What the operator knows of a pool's workers; the arguments are those of `drain_plan.plan`."""

    workers: Mapping[str, WorkerView]
    unused: float = field(kw_only=True)
    listened: float = field(kw_only=True)
    now: float = field(kw_only=True)
    wall: float = field(kw_only=True)

    def members(self, pods: Sequence[Pod]) -> list[PoolMember]:
        """Return what each pod has to do with work."""
        views = {pod.uid: self.view(pod) for pod in pods}
        others_are_heard = any(view is not None for view in views.values())
        return [
            PoolMember(
                pod,
                self._standing(pod, view, others_are_heard),
                0 if view is None else view.busy,
            )
            for pod in pods
            for view in [views[pod.uid]]
        ]

    def view(self, pod: Pod) -> WorkerView | None:
        """Return what the present process in a pod last reported; None: nothing, or long ago."""
        view = self.workers.get(pod.name)
        return None if view is None or self._of_a_former_process(view, pod) else view

    def _standing(self, pod: Pod, view: WorkerView | None, others_are_heard: bool) -> PodOrder:
        if view is None:
            if not pod.started:
                return PodOrder.EMPTY
            if min(self.listened, self._age(pod)) < WORKER_LOST_SECONDS:
                return PodOrder.EXPECTED
            # A message that is with some worker may be with this one.
            idle = self.unused >= UNUSED_SECONDS or (others_are_heard and not pod.ready)
            return PodOrder.IDLE_BY_SILENCE if idle else PodOrder.UNCLEAR
        if view.state is WorkerState.STOPPED:
            return PodOrder.DRAINED
        if view.state is WorkerState.DRAINING:
            return PodOrder.DRAINING
        return PodOrder.AT_WORK

    def _age(self, pod: Pod) -> float:
        """Seconds since its container started; a start in the future means another clock."""
        age = self.wall - (pod.running_since or 0.0)
        return age if age >= 0 else float("inf")

    def _of_a_former_process(self, view: WorkerView, pod: Pod) -> bool:
        """Return whether a container has started since: its process takes work, drained or not."""
        if not pod.started:
            return False
        # The start time is rounded down by up to a second. A report that a worker has stopped must
        # certainly be of this process; any other report only says that the pod is not silent.
        margin = 1.0 if view.state is WorkerState.STOPPED else 0.0
        return self._age(pod) < self.now - view.seen + margin
