"""Our operator in virtual time: its real decision and shrink plan, woken as its controller is.

As `queues.reconciler` does: a run at each tick of a second, and, 20 ms after the
last one at the earliest, when something arrived or a worker changed. What is ready at the broker is
counted at ticks only, so between them what runs is known no better than there. The run time that
DrainTime reckons with is `queues.throughput`'s, workers are known through
`pool.worker_registry` by heartbeats, which are sent as `taskqueue.worker` does.

Left out: the window of what is published (all is), lost heartbeats, a container that restarts
because its drained pod was not removed for a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from taskqueue.controller.pool.autoscaler import (
    Load,
    PoolObservation,
    ScalingDecision,
    ScalingMemory,
    decide,
)
from taskqueue.controller.pool.drain_plan import DrainStep, plan
from taskqueue.controller.pool.poll_backoff import PollBackoff
from taskqueue.controller.pool.worker_registry import WorkerRegistry
from taskqueue.controller.queues.throughput import Throughput
from taskqueue.model.pod import PENDING, RUNNING, Pod
from taskqueue.model.scaling import ScalingPolicy
from taskqueue.model.worker import Worker, WorkerState
from tests.simulation.cluster import Cluster, PodState

TICK_SECONDS = 1.0
_SPACING_SECONDS = 0.02
#: From an event, command or heartbeat until the other side has it, in seconds.
_MESSAGE_SECONDS = 0.02
#: A worker that turns busy or idle says so, but not more often than this.
_HEARTBEAT_SPACING_SECONDS = 2.0
_HEARTBEAT_SECONDS = 10.0
#: Heartbeats have been listened to for as long as they need to be.
_LISTENED = 3600.0

Decide = Callable[..., ScalingDecision]
Plan = Callable[..., DrainStep]


@dataclass(slots=True)
class _Told:
    """What a worker said last."""

    at: float
    busy: int
    state: WorkerState
    planned: bool = False


class Operator:
    """See the module's contract; it acts as time passes.

    Args:
        cluster: where the workers are.
        policy: what the TaskQueue asks for.
        decide: the decision; a test may put a worse one in its place.
        plan: the shrink plan, likewise.
    """

    def __init__(
        self,
        cluster: Cluster,
        policy: ScalingPolicy,
        *,
        decide: Decide = decide,
        plan: Plan = plan,
    ) -> None:
        self._cluster = cluster
        self._timeline = cluster.timeline
        self._policy = policy
        self._decide = decide
        self._plan = plan
        self._memory = ScalingMemory()
        self._size = 0
        self._ready = 0
        self._registry = WorkerRegistry()
        self._throughput = Throughput()
        self._heartbeats: dict[str, _Told] = {}
        self._ordered: dict[str, float] = {}
        self._last_run = float("-inf")
        self._poll_backoff = PollBackoff()
        self._waking = False
        cluster.on_arrival = self._wake
        cluster.on_end = lambda seconds: self._throughput.on_task_ended(self._timeline.now, seconds)
        cluster.on_worker = self._worker_changed
        self._timeline.every(TICK_SECONDS, self._tick, first=0.0)

    # When.

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            at = max(self._timeline.now + _MESSAGE_SECONDS, self._last_run + _SPACING_SECONDS)
            self._timeline.at(at, self._reconcile)

    def _tick(self) -> None:
        self._ready = len(self._cluster.waiting)
        for pod in list(self._cluster.pods.values()):
            last = self._heartbeats.get(pod.name)
            if last is not None and self._timeline.now - last.at >= _HEARTBEAT_SECONDS:
                self._send_heartbeat(pod)
        self._registry.on_pods_listed(set(self._cluster.pods))
        self._registry.pop_lost(self._timeline.now)
        self._reconcile()

    # What.

    def _reconcile(self) -> None:
        self._waking = False
        self._last_run = now = self._timeline.now
        cluster, slots = self._cluster, self._cluster.conditions.slots
        running = max(cluster.unfinished - self._ready, 0)
        decision = self._decide(
            self._policy,
            self._memory,
            Load(
                backlog=cluster.unfinished,
                busy=-(-running // slots),
                slots=slots,
                mean_run_seconds=self._throughput.read(now).mean_run_seconds,
            ),
            PoolObservation(
                size=self._size,
                replicas=cluster.replicas,
                available=sum(pod.ready_at is not None for pod in cluster.active),
            ),
            now=now,
        )
        self._memory, self._size = decision.memory, decision.replicas
        if self._size > cluster.replicas:
            cluster.scale(self._size)
        stopped = self._drained()
        available = sum(pod.ready_at is not None for pod in cluster.active)
        situation = (self._size, cluster.replicas, available)
        if self._unsettled(stopped) and self._poll_backoff.pop_due(situation, stopped, now):
            self._shrink()

    def _drained(self) -> frozenset[str]:
        """Return the workers that have stopped, as far as heard."""
        views = self._registry.views.items()
        return frozenset(pod for pod, view in views if view.state is WorkerState.STOPPED)

    def _unsettled(self, stopped: frozenset[str]) -> bool:
        cluster = self._cluster
        return (
            cluster.replicas != self._size
            or any(pod.ready_at is None for pod in cluster.active)
            or bool(stopped)
        )

    def _shrink(self) -> None:
        cluster, now = self._cluster, self._timeline.now
        step = self._plan(
            tuple(self._as_pod(pod) for pod in cluster.pods.values()),
            self._registry.views,
            replicas=cluster.replicas,
            target=self._size,
            unused=0.0,  # nobody is silent here
            listened=_LISTENED,
            now=now,
            wall=now,
        )
        for name in step.drain:
            self._timeline.after(_MESSAGE_SECONDS, partial(cluster.drain, name))
        for mark in step.mark:
            cluster.mark(mark.pod.name, mark.cost or 0)
        for pod in step.recycle:
            cluster.delete(pod.name)
        if step.replicas < cluster.replicas:
            cluster.scale(step.replicas)

    def _as_pod(self, pod: PodState) -> Pod:
        return Pod(
            name=pod.name,
            uid=pod.name,
            owner="rs",
            phase=PENDING if pod.started is None else RUNNING,
            ready=pod.ready_at is not None,
            running_since=None if pod.started is None else math.floor(pod.started),
            leaving=pod.leaving,
            cost=pod.cost,
            created=math.floor(pod.created),
        )

    # Heartbeats.

    def _worker_changed(self, pod: PodState) -> None:
        last = self._heartbeats.get(pod.name)
        if last is None or _state(pod) is not last.state:
            self._send_heartbeat(pod)
        elif bool(pod.running) != bool(last.busy) and not last.planned:
            last.planned = True
            self._timeline.at(
                last.at + _HEARTBEAT_SPACING_SECONDS, lambda: self._send_heartbeat(pod)
            )

    def _send_heartbeat(self, pod: PodState) -> None:
        if pod.ended:
            return
        now, state, busy = self._timeline.now, _state(pod), len(pod.running)
        self._heartbeats[pod.name] = _Told(now, busy, state)
        self._timeline.after(_MESSAGE_SECONDS, lambda: self._heard(pod.name, busy, state))

    def _heard(self, name: str, busy: int, state: WorkerState) -> None:
        worker = Worker(
            pod=name, node="n", cpus=1.0, slots=self._cluster.conditions.slots, handlers=()
        )
        if self._registry.on_heartbeat(
            worker, running=busy, busy=busy, state=state, now=self._timeline.now
        ):
            self._wake()


def _state(pod: PodState) -> WorkerState:
    if not (pod.draining or pod.leaving):
        return WorkerState.READY
    return WorkerState.DRAINING if pod.running else WorkerState.STOPPED
