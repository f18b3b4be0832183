"""A node with a pool of workers on one queue, as far as scaling has to do with it.

What is modelled, and where it is from:

* The queue is first in, first out. A worker holds one message per slot, no more. A message of a
  killed worker goes back to its place at the head (RabbitMQ, "Consumer Acknowledgements": requeued
  to its original position, if possible).
* A pod needs `Conditions.start_seconds` until it consumes, give or take `start_spread` of it. Its
  container runs after `CONTAINER_PART` of that time; until then the pod is Pending.
* Which pod the ReplicaSet controller removes: `deletion_order`.
* A removed pod accepts nothing more and finishes what it has (SIGTERM, handled as well as a worker
  can). What is left at the end of ``terminationGracePeriodSeconds`` is killed and runs again.
* A pod costs from when it is created until it has ended, starting and stopping included.

Left out: nodes that are full, a broker that is slow, times of API calls (each some 10 ms).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.simulation.loads import Job
from tests.simulation.timeline import Timeline

#: The part of a start until the container runs; the rest is the worker's own.
CONTAINER_PART = 0.4
#: From the end of its last work until the pod of a stopping worker has ended.
_EXIT_SECONDS = 0.1
_NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What workers are like.

    Attributes:
        start_seconds: from the creation of a pod until it consumes.
        start_spread: this part of it more or less, evenly distributed.
        slots: messages a worker has in hand at once.
        grace_seconds: terminationGracePeriodSeconds of its pod.
    """

    start_seconds: float = 0.7
    start_spread: float = 0.2
    slots: int = 1
    grace_seconds: float = 30.0


@dataclass(slots=True, eq=False)
class Work:
    """A message on its way."""

    number: int
    job: Job
    started: float | None = None
    ended: float | None = None
    kills: int = 0


@dataclass(slots=True, eq=False)
class PodState:
    """A pod with its worker."""

    name: str
    created: float
    running: set[Work] = field(default_factory=set)
    started: float | None = None
    ready_at: float | None = None
    draining: bool = False
    leaving: bool = False
    ended: bool = False
    cost: int = 0

    @property
    def free(self) -> bool:
        """Whether its worker consumes."""
        return self.ready_at is not None and not (self.draining or self.leaving)


def deletion_order(pod: PodState, now: float) -> tuple[object, ...]:
    """Return what the ReplicaSet controller sorts by; the least goes first.

    Pending before Running, not ready before ready, lower pod-deletion-cost, then the younger, by
    powers of two of the age since 1.22 (LogarithmicScaleDown), and of the same power by UID, that
    is by chance: kubernetes/kubernetes pkg/controller/controller_utils.go, ActivePodsWithRanks.
    Who has work is not known there. All pods are on one node, so no one is doubled up.
    """
    ready = pod.ready_at is not None
    age = (now - (pod.ready_at if pod.ready_at is not None else pod.created)) * _NANOSECONDS
    power = int(math.log2(age)) if age >= 1 else -1
    return (pod.started is not None, ready, pod.cost, power, pod.name)


class Cluster:
    """See the module's contract.

    Args:
        timeline: the time.
        jobs: what arrives, and when.
        conditions: what workers are like.
        seed: for the times of starts and the names of pods.

    Attributes:
        waiting: in the queue, the oldest first.
        unfinished: waiting or running.
        replicas: spec.replicas.
        sizes: (time, replicas) of every change.
        removed: pods that were deleted with a worker in them.
        removed_busy: of those, with work in hand.
        killed: messages that a kill cut off.
        pod_seconds: of pods that have ended; `cost_until` counts all.
    """

    def __init__(
        self, timeline: Timeline, jobs: Iterable[Job], conditions: Conditions, *, seed: int
    ) -> None:
        self.timeline = timeline
        self.conditions = conditions
        self.works = [Work(number, job) for number, job in enumerate(jobs)]
        self.waiting: deque[Work] = deque()
        self.unfinished = 0
        self.replicas = 0
        self.pods: dict[str, PodState] = {}
        self.sizes: list[tuple[float, int]] = [(0.0, 0)]
        self.removed = self.removed_busy = self.killed = 0
        self.pod_seconds = 0.0
        #: Called when a message arrives, and when one has ended, with how long it ran.
        self.on_arrival: Callable[[], None] = lambda: None
        self.on_end: Callable[[float], None] = lambda seconds: None
        #: Called at every change of a worker.
        self.on_worker: Callable[[PodState], None] = lambda pod: None
        self._random = random.Random(seed)
        for work in self.works:
            timeline.at(work.job.arrives, lambda work=work: self._arrive(work))  # type: ignore[misc]

    # What others ask for.

    @property
    def active(self) -> list[PodState]:
        """The pods that are not on their way out, the oldest first: status.replicas."""
        return [pod for pod in self.pods.values() if not pod.leaving]

    @property
    def unacknowledged(self) -> int:
        """Messages that are in the hands of workers."""
        return self.unfinished - len(self.waiting)

    def scale(self, replicas: int) -> None:
        """Set spec.replicas; the ReplicaSet controller acts at once."""
        if replicas != self.replicas:
            self.replicas = replicas
            self.sizes.append((self.timeline.now, replicas))
        self._settle()

    def drain(self, name: str) -> None:
        """Make a worker accept no more messages."""
        pod = self.pods.get(name)
        if pod is not None and pod.ready_at is not None and not (pod.leaving or pod.draining):
            pod.draining = True
            self.on_worker(pod)

    def mark(self, name: str, cost: int) -> None:
        """Set the pod-deletion-cost."""
        self.pods[name].cost = cost

    def delete(self, name: str) -> None:
        """Delete one pod; the ReplicaSet controller makes another."""
        self._remove(self.pods[name])
        self._settle()

    def cost_until(self, end: float) -> float:
        """Return the pod-seconds spent until then."""
        return self.pod_seconds + sum(end - pod.created for pod in self.pods.values())

    # Pods.

    def _settle(self) -> None:
        active = self.active
        for _ in range(self.replicas - len(active)):
            self._create()
        if len(active) > self.replicas:
            now = self.timeline.now
            active.sort(key=lambda pod: deletion_order(pod, now))
            for pod in active[: len(active) - self.replicas]:
                self._remove(pod)

    def _create(self) -> None:
        pod = PodState(name=f"{self._random.getrandbits(48):012x}", created=self.timeline.now)
        self.pods[pod.name] = pod
        spread = self.conditions.start_spread
        seconds = self.conditions.start_seconds * self._random.uniform(1 - spread, 1 + spread)
        self.timeline.after(seconds * CONTAINER_PART, lambda: self._container_runs(pod))
        self.timeline.after(seconds, lambda: self._ready(pod))

    def _container_runs(self, pod: PodState) -> None:
        pod.started = self.timeline.now

    def _ready(self, pod: PodState) -> None:
        if pod.leaving:
            return
        pod.ready_at = self.timeline.now
        self.on_worker(pod)
        self._deliver(pod)

    def _remove(self, pod: PodState) -> None:
        pod.leaving = True
        if pod.ready_at is None:
            self._gone(pod)
            return
        self.removed += 1
        if pod.running:
            self.removed_busy += 1
            self.timeline.after(self.conditions.grace_seconds, lambda: self._kill(pod))
        else:
            self.timeline.after(_EXIT_SECONDS, lambda: self._gone(pod))

    def _gone(self, pod: PodState) -> None:
        if not pod.ended:
            pod.ended = True
            del self.pods[pod.name]
            self.pod_seconds += self.timeline.now - pod.created

    def _kill(self, pod: PodState) -> None:
        if pod.ended:
            return
        self.killed += len(pod.running)
        for work in sorted(pod.running, key=lambda one: one.number, reverse=True):
            work.kills += 1
            self.waiting.appendleft(work)
        pod.running.clear()
        self._gone(pod)
        self._share()

    # Work.

    def _arrive(self, work: Work) -> None:
        self.unfinished += 1
        self.waiting.append(work)
        self._share()
        self.on_arrival()

    def _share(self) -> None:
        """Give what waits to workers, the least busy first; RabbitMQ goes round, near the same."""
        while self.waiting:
            free = [
                pod
                for pod in self.pods.values()
                if pod.free and len(pod.running) < self.conditions.slots
            ]
            if not free:
                return
            self._start(self.waiting.popleft(), min(free, key=lambda pod: len(pod.running)))

    def _deliver(self, pod: PodState) -> None:
        while self.waiting and pod.free and len(pod.running) < self.conditions.slots:
            self._start(self.waiting.popleft(), pod)

    def _start(self, work: Work, pod: PodState) -> None:
        if work.started is None:
            work.started = self.timeline.now
        pod.running.add(work)
        if len(pod.running) == 1:
            self.on_worker(pod)
        self.timeline.after(work.job.seconds, lambda: self._end(work, pod))

    def _end(self, work: Work, pod: PodState) -> None:
        if work not in pod.running:  # killed
            return
        pod.running.discard(work)
        work.ended = self.timeline.now
        self.unfinished -= 1
        self.on_end(work.job.seconds)
        self._deliver(pod)
        if pod.running:
            return
        if pod.leaving:
            self.timeline.after(_EXIT_SECONDS, lambda: self._gone(pod))
        else:
            self.on_worker(pod)
