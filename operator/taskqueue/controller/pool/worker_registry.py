"""The workers of a TaskQueue, as far as they have lately said that they live.

A worker that has stopped lives no more: it is not counted and offers no slots. It is remembered all
the same, because its process waits, drained, for its pod to be removed, and whoever removes pods
must know: until the pod says something else, or is gone, or nothing was heard for long enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from taskqueue.model.worker import Worker, WorkerState

#: Silent for so long, a worker counts as lost: three heartbeats were missed.
LOST_SECONDS = 35.0

#: A worker that has stopped is forgotten when nothing was heard for so long: by then its process
#: has ended by itself, and its container was started again or is gone.
STOPPED_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """What was last heard of a worker: what one must know to remove its pod, or to keep it.

    Attributes:
        pod: its name.
        slots: attempts it runs at once.
        busy: attempts and direct messages it runs.
        running: attempts of Tasks it runs.
        state: what it is doing.
        seen: when it said so, in seconds on the registry's clock.
    """

    pod: str
    slots: int
    busy: int
    running: int
    state: WorkerState
    seen: float


class WorkerRegistry:
    """Registers workers by their heartbeats, and misses those that stay away."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        #: Of those and of the stopped ones.
        self._views: dict[str, WorkerView] = {}
        self._slots_each = 1

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All that live, in the order of their names."""
        return tuple(self._workers[pod] for pod in sorted(self._workers))

    @property
    def views(self) -> Mapping[str, WorkerView]:
        """All that live and those that have stopped, by the names of their pods."""
        return dict(self._views)

    @property
    def slots(self) -> int:
        """Attempts that all who take work can run at once."""
        return sum(one.slots for one in self._living if one.state is WorkerState.READY)

    @property
    def slots_each(self) -> int:
        """Attempts that one of them runs at once, on average; while none lives, the last known."""
        return self._slots_each

    @property
    def busy(self) -> int:
        """How many run something."""
        return sum(one.busy > 0 for one in self._living)

    @property
    def foreign(self) -> int:
        """Direct messages that all of them run."""
        return sum(max(one.busy - one.running, 0) for one in self._living)

    @property
    def _living(self) -> Iterable[WorkerView]:
        return (self._views[pod] for pod in self._workers)

    def beat(
        self, worker: Worker, *, running: int, busy: int, state: WorkerState, now: float
    ) -> bool:
        """Take a heartbeat; tell whether the worker is new, or another than it was.

        Args:
            worker: as it describes itself.
            running: attempts of Tasks it runs.
            busy: attempts and direct messages it runs.
            state: what it is doing.
            now: seconds on any clock.
        """
        before = self._views.get(worker.pod)
        described = self._workers.get(worker.pod)
        if state is WorkerState.STOPPED:
            self._workers.pop(worker.pod, None)
        else:
            self._workers[worker.pod] = worker
        self._views[worker.pod] = WorkerView(
            pod=worker.pod, slots=worker.slots, busy=busy, running=running, state=state, seen=now
        )
        if self._workers:
            slots = sum(one.slots for one in self._workers.values())
            self._slots_each = max(slots // len(self._workers), 1)
        return (
            before is None
            or before.state is not state
            or self._workers.get(worker.pod) != described
        )

    def forget(self, pods: Collection[str]) -> None:
        """Forget the stopped workers whose pod is not among those that exist.

        Nothing is concluded from that about the others: a worker may run outside of any pod.
        """
        for pod in self._views.keys() - self._workers.keys() - set(pods):
            del self._views[pod]

    def expire(self, now: float) -> tuple[str, ...]:
        """Forget the workers that stayed silent for `LOST_SECONDS`; return their names.

        Stopped ones stay for `STOPPED_SECONDS`, and go untold: nobody misses them.
        """
        silent = {pod: now - one.seen for pod, one in self._views.items()}
        lost = [pod for pod in self._workers if silent[pod] > LOST_SECONDS]
        for pod in lost:
            del self._workers[pod], self._views[pod]
        for pod in self._views.keys() - self._workers.keys():
            if silent[pod] > STOPPED_SECONDS:
                del self._views[pod]
        return tuple(lost)
