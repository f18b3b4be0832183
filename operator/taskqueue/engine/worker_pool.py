"""Keeps one TaskQueue's worker Deployment as the TaskQueue and its backlog want it.

The decision is `taskqueue.domain.scaling`; here it is carried out. The template is applied when
the TaskQueue changed or the Deployment went away; a change of size alone goes through /scale.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from taskqueue.cluster import deployments
from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.cluster.deployments import InvalidTemplate, PoolState
from taskqueue.cluster.queue_objects import QUEUE_LABEL
from taskqueue.domain.queue import Condition, QueueConfig
from taskqueue.domain.scaling import Decision, Load, Pool, ScalingMemory, decide
from taskqueue.engine.metrics import DESIRED_WORKERS
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: After the API server refused a template, it is tried again this often: a quota or an admission
#: policy may have been mended without a change of the TaskQueue.
_REFUSED_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    generation: int
    until: float
    reason: str
    message: str


class WorkerPool:
    """See the module's contract.

    Args:
        client: for the API server.
        clock: wall time in seconds.
        monotonic: seconds that never jump.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._monotonic = monotonic
        self._memory = ScalingMemory()
        #: What the Deployment in place was made from: the TaskQueue and its connection Secret.
        self._applied: tuple[QueueConfig, str | None] | None = None
        self._refusal: _Refusal | None = None
        self.state: PoolState | None = None
        self.decision: Decision | None = None
        self.last_scale_time: float | None = None

    @property
    def desired(self) -> int:
        """The size last decided on; before that the size found."""
        if self.decision is not None:
            return self.decision.replicas
        return self.state.desired if self.state is not None else 0

    def observed(self, state: PoolState | None) -> None:
        """Take what the Deployment says of itself; None: it is gone."""
        self.state = state
        if state is None:
            self._applied = None

    async def reconcile(
        self,
        config: QueueConfig,
        *,
        backlog: int | None,
        pending: int = 0,
        busy: int = 0,
        secret: tuple[str, str] | None = None,
    ) -> None:
        """Decide the size and put it in place.

        Args:
            config: what the TaskQueue asks for.
            backlog: Tasks that may run and messages others published; None: unknown.
            pending: the part of the backlog that is not published.
            busy: workers that running Tasks may keep busy.
            secret: (namespace, name) of the connection Secret; None: not found yet.

        Raises:
            ApiError: the API server could not be asked; try again.
        """
        before = self.desired
        self.decision = decide(
            config.scaling,
            self._memory,
            Load(backlog=backlog, pending=pending, busy=busy),
            Pool(size=before, replicas=self.state.desired if self.state is not None else before),
            now=self._monotonic(),
        )
        self._memory = self.decision.memory
        DESIRED_WORKERS.labels(*config.key).set(self.decision.replicas)
        if config.template is None:
            if self.state is not None and self.state.desired > 0:
                await self._resize(config, 0)  # the template was withdrawn
            return
        if self.decision.replicas != before:
            self.last_scale_time = self._clock()
            log.info(
                "pool.resized",
                namespace=config.namespace,
                queue=config.name,
                before=before,
                replicas=self.decision.replicas,
                why=self.decision.explanation,
            )
        await self._apply(config, self.decision.replicas, secret)
        if self.state is not None and self.state.desired != self.decision.replicas:
            # Also while a changed template is refused: the pool of the former one goes on.
            await self._resize(config, self.decision.replicas)

    def conditions(self, config: QueueConfig) -> tuple[Condition, Condition]:
        """Return WorkersAvailable and ScalingActive."""
        return self._workers_available(config), self._scaling_active(config)

    @property
    def refused(self) -> bool:
        """Whether the API server takes no Deployment from us."""
        return self._refusal is not None

    async def _apply(
        self, config: QueueConfig, replicas: int, secret: tuple[str, str] | None
    ) -> None:
        cluster = config.rabbitmq_cluster
        usable: str | None = config.connection_secret
        if cluster is not None:
            if secret is None:
                return  # known once the RabbitmqCluster was read; the pool in place goes on
            usable = secret[1] if secret[0] == config.namespace else None
        if self._applied == (config, usable):
            return
        refusal = self._refusal
        if (
            refusal is not None
            and refusal.generation == config.generation
            and self._monotonic() < refusal.until
        ):
            return
        try:
            self.state = await deployments.apply(
                self._client, config, replicas=replicas, secret=usable
            )
        except InvalidTemplate as problem:
            self._refuse(config, "InvalidTemplate", f"{problem}: mend spec.workers.template")
        except ApiError as problem:
            invalid = problem.status in (400, 422) or _is_untyped(problem)
            if problem.status in (0, 429):
                raise  # no word about this Deployment: the API server is away or busy
            reason = "InvalidTemplate" if invalid else "DeploymentRefused"
            cure = "mend spec.workers.template" if invalid else "trying again by itself"
            self._refuse(
                config,
                reason,
                f"the API server refused the worker Deployment: {problem.message}: {cure}",
            )
        else:
            self._applied, self._refusal = (config, usable), None

    async def _resize(self, config: QueueConfig, replicas: int) -> None:
        try:
            await deployments.resize(self._client, config.key, replicas=replicas)
        except ApiError as problem:
            if problem.status != 404:
                raise
            self.observed(None)
            return
        if self.state is not None:
            self.state = PoolState(
                desired=replicas,
                replicas=self.state.replicas,
                available=self.state.available,
                observed=False,
                message=self.state.message,
            )

    def _refuse(self, config: QueueConfig, reason: str, message: str) -> None:
        if self._refusal is None or self._refusal.message != message:
            log.warning(
                "pool.refused", namespace=config.namespace, queue=config.name, problem=message
            )
        self._refusal = _Refusal(
            generation=config.generation,
            until=self._monotonic() + _REFUSED_PAUSE_SECONDS,
            reason=reason,
            message=message,
        )

    def _workers_available(self, config: QueueConfig) -> Condition:
        kind = "WorkersAvailable"
        if config.template is None:
            return Condition(kind, None, "WorkersElsewhere", "spec.workers has no template")
        if self._refusal is not None:
            return Condition(
                kind,
                False,
                self._refusal.reason,
                self._refusal.message,
            )
        if self.desired == 0:
            return Condition(kind, True, "ScaledToZero", "no Task waits, no worker is needed")
        available = self.state.available if self.state is not None else 0
        text = f"{available} of {self.desired} workers are available"
        if available >= self.desired:
            return Condition(kind, True, "Available", text)
        if self.state is not None and self.state.message:
            return Condition(kind, False, "ReplicaFailure", f"{text}: {self.state.message}")
        if available > 0:
            return Condition(kind, True, "Growing", text)
        return Condition(
            kind,
            False,
            "Starting",
            f"{text}; if this lasts: kubectl describe pods -n {config.namespace} "
            f"-l {QUEUE_LABEL}={config.name}",
        )

    def _scaling_active(self, config: QueueConfig) -> Condition:
        kind = "ScalingActive"
        if config.template is None:
            return Condition(kind, False, "WorkersElsewhere", "spec.workers has no template")
        if config.scaling.paused_replicas is not None:
            return Condition(kind, False, "Paused", "spec.scaling.paused is true")
        if self.decision is not None and not self.decision.active:
            return Condition(kind, False, "BacklogUnknown", self.decision.explanation)
        return Condition(kind, True, "Following", "the size follows the backlog")


def _is_untyped(problem: ApiError) -> bool:
    """Tell a body that does not fit the schema, which server-side apply answers with a 500."""
    return problem.status == 500 and "failed to create typed patch object" in problem.message
