"""The live workers of a TaskQueue, known by their heartbeats.

A worker that has stopped is not live: it is not counted and offers no slots. It stays registered
because its process waits, drained, for its pod to be removed, and the drain plan must know that. It
stays until the pod reports something else, is deleted, or has been silent for long enough.

No more than `REGISTERED_WORKERS` are remembered, since anybody who may publish heartbeats of the
queue can invent workers. The one that has been silent for the longest is forgotten first, but of
the workers that are known to exist only when there are no others: they have a pod, or have reported
an attempt with its token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from taskqueue.limits import (
    DRAINED_SECONDS,
    REGISTERED_WORKERS,
    STATUS_HANDLERS,
    STATUS_HANDLERS_LENGTH,
    WORKER_LOST_SECONDS,
)
from taskqueue.model.worker import Worker, WorkerState

#: A stopped worker that is silent for this long is removed: by then its process has ended by
#: itself, and its container has restarted or is deleted.
STOPPED_SECONDS = 2 * DRAINED_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """What a worker last reported: what decides whether its pod may be removed.

    Attributes:
        pod: its name.
        slots: attempts it runs at once.
        busy: attempts and direct messages it runs.
        running: attempts of Tasks it runs.
        state: whether it takes work.
        seen: when it reported this, in seconds on the registry's clock.
        proven: whether it has reported an attempt with the token that belongs to it.
    """

    pod: str
    slots: int
    busy: int
    running: int
    state: WorkerState
    seen: float
    proven: bool = False


class WorkerRegistry:
    """Registers workers by their heartbeats, and finds those that are lost.

    Args:
        on_pod_gone: called with the name of a pod that was listed, and is not any more.
    """

    def __init__(self, on_pod_gone: Callable[[str], object] = str) -> None:
        self._on_pod_gone = on_pod_gone
        self._workers: dict[str, Worker] = {}
        #: Of the live and the stopped ones; who reported last is last.
        self._views: dict[str, WorkerView] = {}
        #: As they were last listed.
        self._pods: frozenset[str] = frozenset()
        self._slots_each = 1

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All live workers: those of listed pods first, then by their names.

        A status has room for some of them only, and names that others report must not fill it.
        """
        pods = sorted(self._workers, key=lambda pod: (pod not in self._pods, pod))
        return tuple(self._workers[pod] for pod in pods)

    @property
    def views(self) -> Mapping[str, WorkerView]:
        """All live and stopped workers, by the names of their pods."""
        return dict(self._views)

    @property
    def slots(self) -> int:
        """Attempts that all workers that take work can run at once."""
        return sum(one.slots for one in self._live if one.state is WorkerState.READY)

    @property
    def slots_each(self) -> int:
        """Attempts that one worker runs at once, on average; while none is live, the last known."""
        return self._slots_each

    @property
    def busy(self) -> int:
        """How many run something."""
        return sum(one.busy > 0 for one in self._live)

    @property
    def foreign(self) -> int:
        """Direct messages that all of them run."""
        return sum(max(one.busy - one.running, 0) for one in self._live)

    @property
    def _live(self) -> Iterable[WorkerView]:
        return (self._views[pod] for pod in self._workers)

    def on_heartbeat(
        self,
        worker: Worker,
        *,
        running: int,
        busy: int,
        state: WorkerState,
        now: float,
        proven: bool = False,
    ) -> bool:
        """Register a heartbeat; return whether the worker is new or has changed.

        Args:
            worker: as it describes itself.
            running: attempts of Tasks it runs.
            busy: attempts and direct messages it runs.
            state: whether it takes work.
            now: seconds on any clock.
            proven: whether it has reported an attempt with the token that belongs to it.
        """
        before = self._views.pop(worker.pod, None)
        described = self._workers.get(worker.pod)
        if state is WorkerState.STOPPED:
            self._workers.pop(worker.pod, None)
        else:
            self._workers[worker.pod] = worker
        self._views[worker.pod] = WorkerView(
            pod=worker.pod,
            slots=worker.slots,
            busy=busy,
            running=running,
            state=state,
            seen=now,
            proven=proven or (before is not None and before.proven),
        )
        if len(self._views) > REGISTERED_WORKERS:
            self._forget_one()
        if self._workers:
            slots = sum(one.slots for one in self._workers.values())
            self._slots_each = max(slots // len(self._workers), 1)
        return (
            before is None
            or before.state is not state
            or self._workers.get(worker.pod) != described
        )

    def on_pods_listed(self, pods: Collection[str]) -> None:
        """Remove the stopped workers whose pod is not among ``pods``.

        The others stay: a worker may run outside of any pod.
        """
        before, self._pods = self._pods, frozenset(pods)
        for pod in self._views.keys() - self._workers.keys() - self._pods:
            del self._views[pod]
        for pod in before - self._pods:
            self._on_pod_gone(pod)

    def _forget_one(self) -> None:
        unproven = (
            pod for pod, one in self._views.items() if not one.proven and pod not in self._pods
        )
        pod = next(unproven, None) or next(iter(self._views))
        del self._views[pod]
        self._workers.pop(pod, None)

    def pop_lost(self, now: float) -> tuple[str, ...]:
        """Remove the workers that were silent for `WORKER_LOST_SECONDS`; return their names.

        Stopped ones stay for `STOPPED_SECONDS`, and are not among the names.
        """
        silent = {pod: now - one.seen for pod, one in self._views.items()}
        lost = [pod for pod in self._workers if silent[pod] > WORKER_LOST_SECONDS]
        for pod in lost:
            del self._workers[pod], self._views[pod]
        for pod in self._views.keys() - self._workers.keys():
            if silent[pod] > STOPPED_SECONDS:
                del self._views[pod]
        return tuple(lost)


def shown_handlers(handlers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the handlers that a status lists; nobody needs the others."""
    sizes = itertools.accumulate(map(len, handlers[:STATUS_HANDLERS]))
    return handlers[: sum(size <= STATUS_HANDLERS_LENGTH for size in sizes)]
