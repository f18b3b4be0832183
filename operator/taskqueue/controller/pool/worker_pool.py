"""Keeps the workers of one TaskQueue at the number that its spec and backlog ask for.

`autoscaler` decides the number, `health` finds what is wrong with the pods, `drain_plan` decides
which pods may be removed; this module carries it out. The pool grows at once, and shrinks as its
workers have drained (`drainer`). Pods are listed only while the pool is not in its desired state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict

from taskqueue.controller.metrics import DESIRED_WORKERS
from taskqueue.controller.pool.autoscaler import (
    Load,
    PoolObservation,
    ScalingDecision,
    ScalingMemory,
    decide,
)
from taskqueue.controller.pool.conditions.scaling_active import scaling_active
from taskqueue.controller.pool.conditions.workers_available import workers_available
from taskqueue.controller.pool.disconnected import (
    explain_disconnected,
    find_disconnected,
    may_lack_workers,
)
from taskqueue.controller.pool.drainer import Drainer
from taskqueue.controller.pool.health import HealthMemory, PoolHealth, assess
from taskqueue.controller.pool.own_deployment import OwnDeployment
from taskqueue.controller.pool.poll_backoff import PollBackoff
from taskqueue.controller.pool.pool_members import WorkerObservations
from taskqueue.controller.pool.referenced_workload import ReferencedWorkload
from taskqueue.controller.pool.workload import Workload
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.pods import list_pods
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueConfig
from taskqueue.model.worker import WorkerState

log = EventLog(__name__)

#: The pods of a workload that reports nothing about them are listed at least this often.
_LIST_SECONDS = 10.0


class WorkerPool:
    """Sizes the workload of one TaskQueue, and keeps its pods in view.

    Args:
        client: for the API server.
        clock: wall time in seconds.
        send_drain: commands the worker of a pod to take no more work.
        installation: of the operator.
        on_pods: called with the names of the existing pods whenever they were listed.
        sizing_conflict: returns why a TaskQueue must not size what it refers to; "": it may.
        monotonic: the clock of the workers' views, in seconds.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        clock: Callable[[], float],
        send_drain: Callable[[str], None],
        installation: str,
        on_pods: Callable[[Collection[str]], None] = lambda names: None,
        sizing_conflict: Callable[[QueueConfig], str] = lambda config: "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._on_pods = on_pods
        self._sizing_conflict = sizing_conflict
        self._monotonic = monotonic
        self._own = OwnDeployment(client, installation=installation, monotonic=monotonic)
        self._referenced = ReferencedWorkload(client, monotonic=monotonic)
        self._drainer, self._withdrawn_drainer = (
            Drainer(client, send_drain=send_drain, clock=clock, monotonic=monotonic)
            for _ in range(2)
        )
        self._poll_backoff, self._withdrawn_backoff = PollBackoff(), PollBackoff()
        #: What the last reconcile scaled.
        self._scaled: Workload | None = None
        self._memory = ScalingMemory()
        self._health = PoolHealth(memory=HealthMemory())
        #: Which workers run without a connection to the broker, for a condition.
        self._disconnected = ""
        self._waiting_for = ""
        self.decision: ScalingDecision | None = None
        self.last_scale_time: float | None = None

    @property
    def desired(self) -> int:
        """The size last decided; before that the present size."""
        if self.decision is not None:
            return self.decision.replicas
        state = None if self._scaled is None else self._scaled.state
        return 0 if state is None else state.desired

    @property
    def explanation(self) -> str:
        """Why the size is what it is, in one line."""
        if self.decision is None:
            return ""
        return "; ".join(filter(None, (self.decision.explanation, self._waiting_for)))

    def state(self, config: QueueConfig) -> PoolState | None:
        """Return what the workload reports; None: there is none, or nothing is known."""
        workload = self._workload(config)
        return None if workload is None else workload.state

    def selector(self, config: QueueConfig) -> str:
        """Return the label selector of the workers' pods."""
        workload = self._workload(config)
        found = "" if workload is None else workload.selector(config)
        return found or self._own.selector(config)

    def is_refused(self, config: QueueConfig) -> bool:
        """Return whether the workload is not as the TaskQueue asks."""
        workload = self._workload(config)
        return workload is not None and workload.refusal is not None

    def on_deployment_state(self, state: PoolState | None) -> None:
        """Set what the Deployment reports; None: it is deleted."""
        self._own.set_state(state)

    async def reconcile(
        self,
        config: QueueConfig,
        load: Load,
        observations: WorkerObservations,
        *,
        secret: tuple[str, str] | None = None,
    ) -> None:
        """Decide the size and bring the pool nearer to it.

        Args:
            config: what the TaskQueue asks for.
            load: the work of the queue.
            observations: what is known about the workers.
            secret: (namespace, name) of the workers' Secret; None: not known yet.

        Raises:
            ApiError: the API server could not be asked; try again.
        """
        workload = self._workload(config)
        if workload is not self._scaled:
            self._scaled, self._waiting_for = workload, ""
            self.decision, self._memory = None, ScalingMemory()
            self._health, self._disconnected = PoolHealth(memory=HealthMemory()), ""
        await self._referenced.read(config, conflict=self._sizing_conflict(config))
        stopped = frozenset(
            pod for pod, view in observations.views.items() if view.state is WorkerState.STOPPED
        )
        if self._withdrawn:
            await self._drain_withdrawn(config, observations, stopped)
        if workload is self._referenced and workload.state is None:
            return  # no decision without a known size
        target = self._decide(config, load, workload)
        if workload is None:
            return
        await workload.prepare(config, replicas=target, secret=secret)
        # Also while a changed template is rejected: the pool of the former one continues.
        if workload.state is not None and target > workload.state.desired:
            await workload.resize(config, target)
        if workload.state is not None and self._pop_pod_check_due(
            workload.state, observations, stopped, target
        ):
            try:
                await self._manage_pods(config, workload, workload.state, observations, target)
            except ApiError as problem:
                self._record_forbidden(config, problem)

    def conditions(self, config: QueueConfig) -> tuple[Condition, Condition]:
        """Return WorkersAvailable and ScalingActive."""
        workload = self._workload(config)
        refusal = None if workload is None else workload.refusal
        available = workers_available(
            config,
            state=self.state(config),
            refusal=refusal,
            desired=self.desired,
            explanation=self.explanation,
            health=self._health,
            disconnected=self._disconnected,
        )
        return available, scaling_active(config, self.decision, refusal)

    def _workload(self, config: QueueConfig) -> Workload | None:
        """Return what is scaled; None: the workers run elsewhere."""
        if config.scale_target is not None:
            return self._referenced
        return None if config.template is None else self._own

    def _decide(self, config: QueueConfig, load: Load, workload: Workload | None) -> int:
        before, state = self.desired, None if workload is None else workload.state
        pool = PoolObservation(
            size=before,
            replicas=0 if state is None else state.desired,
            available=None if state is None else state.available,
            ceiling=self._health.ceiling,
            ceiling_reason=self._health.message,
        )
        decision = decide(config.scaling, self._memory, load, pool, now=self._monotonic())
        self.decision, self._memory = decision, decision.memory
        DESIRED_WORKERS.labels(*config.key).set(decision.replicas)
        if workload is not None and decision.replicas != before:
            self.last_scale_time = self._clock()
            log.info(
                "pool.size_decided",
                namespace=config.namespace,
                queue=config.name,
                before=before,
                replicas=decision.replicas,
                reason=decision.explanation,
                load=asdict(decision.load),
                pool=asdict(decision.pool),
            )
        return decision.replicas

    def _pop_pod_check_due(
        self,
        state: PoolState,
        observations: WorkerObservations,
        stopped: frozenset[str],
        target: int,
    ) -> bool:
        """Return whether to list the pods now, and count that as done if so."""
        settled = (
            state.desired == target
            and state.available >= state.desired
            and not self._health.reason
            and not stopped
            and not may_lack_workers(observations, state.desired)
        )
        if settled:
            self._waiting_for = self._disconnected = ""
        now = self._monotonic()
        again = self._health.next_check
        if again is not None and now >= again:
            return self._poll_backoff.pop_due(again, stopped, now)
        heard = len(observations.views)
        situation = (target, state.desired, state.available, state.message, heard)
        if not settled:
            return self._poll_backoff.pop_due(situation, stopped, now)
        return self._scaled is self._referenced and self._poll_backoff.pop_due(
            situation, stopped, now, longest=_LIST_SECONDS
        )

    async def _manage_pods(
        self,
        config: QueueConfig,
        workload: Workload,
        state: PoolState,
        observations: WorkerObservations,
        target: int,
    ) -> None:
        """List the pods, assess their health, and remove those that may go."""
        pods = await list_pods(self._client, config.namespace, workload.selector(config))
        if not self._withdrawn:
            self._on_pods({pod.name for pod in pods})
        workload.set_available(sum(pod.active and pod.ready for pod in pods))
        self._health = assess(
            self._health.memory,
            pods=pods,
            refused=state.message,
            replicas=state.desired,
            wanted=0 if self.decision is None else self.decision.wanted,
            available=state.available,
            now=self._monotonic(),
        )
        disconnected = find_disconnected(
            pods, observations, now=self._monotonic(), wall=self._clock()
        )
        self._disconnected = explain_disconnected(config, disconnected)
        first_ordinal = await workload.first_ordinal(config)
        if workload.state is None:
            return  # deleted, or no longer readable
        step = await self._drainer.step(
            config.namespace,
            pods,
            observations,
            replicas=state.desired,
            target=target,
            first_ordinal=first_ordinal,
        )
        self._waiting_for = step.waiting_for
        if step.replicas < state.desired:
            await workload.resize(config, step.replicas)
            log.info(
                "pool.shrunk",
                namespace=config.namespace,
                queue=config.name,
                before=state.desired,
                replicas=step.replicas,
            )

    @property
    def _withdrawn(self) -> bool:
        """Whether there are workers of a template that was removed from the TaskQueue."""
        state = self._own.state
        return self._scaled is not self._own and state is not None and state.desired > 0

    async def _drain_withdrawn(
        self, config: QueueConfig, observations: WorkerObservations, stopped: frozenset[str]
    ) -> None:
        """Remove the workers of a withdrawn template as they have drained."""
        state = self._own.state
        if state is None or not self._withdrawn_backoff.pop_due(state, stopped, self._monotonic()):
            return
        try:
            pods = await list_pods(self._client, config.namespace, self._own.selector(config))
            step = await self._withdrawn_drainer.step(
                config.namespace,
                pods,
                observations,
                replicas=state.desired,
                target=0,
                first_ordinal=None,
            )
        except ApiError as problem:
            self._record_forbidden(config, problem)
            return
        if step.replicas < state.desired:
            await self._own.resize(config, step.replicas)

    def _record_forbidden(self, config: QueueConfig, problem: ApiError) -> None:
        """Report that the operator may not manage pods; anything else is raised."""
        if problem.status != 403:
            raise problem
        text = f"{problem.message}: apply the ClusterRole of manifests/base/rbac.yaml"
        if text != self._waiting_for:
            log.error(
                "pool.access_denied", namespace=config.namespace, queue=config.name, error=text
            )
        self._waiting_for = text
