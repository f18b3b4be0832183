"""The Deployment the operator makes for a TaskQueue that has a pod template.

The template is applied when the TaskQueue changed or the Deployment was deleted; a change of size
alone uses /scale. A template that the API server rejects leaves the Deployment as it is, and is
tried again when the TaskQueue changes or after a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from taskqueue.controller.pool.workload import WorkloadRefusal
from taskqueue.kubernetes import deployments
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.deployments import InvalidTemplate, PoolState
from taskqueue.kubernetes.direct_limits import apply_direct_limits, direct_limits
from taskqueue.kubernetes.informer import Key, identity
from taskqueue.kubernetes.ownership import SUFFIX
from taskqueue.kubernetes.taskqueue_codec import QUEUE_LABEL
from taskqueue.logs import EventLog
from taskqueue.model.queue import CredentialsType, QueueConfig, QueueKey

log = EventLog(__name__)

#: A template that the API server rejected is tried again this often: a quota or an admission policy
#: may have been fixed without a change of the TaskQueue.
_REFUSED_PAUSE_SECONDS = 5.0


class OwnDeployment:
    """Applies and resizes the worker Deployment; a `taskqueue.controller.pool.workload.Workload`.

    Args:
        client: for the API server.
        installation: of the operator, for workers to know.
        monotonic: seconds that never jump.

    Attributes:
        state: what the Deployment reports; None: there is none.
        refusal: why the present template is not in place; None: it is.
    """

    def __init__(
        self, client: ApiClient, *, installation: str, monotonic: Callable[[], float]
    ) -> None:
        self._client = client
        self._installation = installation
        self._monotonic = monotonic
        self.state: PoolState | None = None
        self.refusal: WorkloadRefusal | None = None
        #: What the Deployment in place was made from: the TaskQueue and its workers' Secret.
        self._applied: tuple[QueueConfig, str | None] | None = None
        self._refused: tuple[int, float] = (0, 0.0)
        #: The limits in the ConfigMap and the TaskQueue they are of; None: not known.
        self._limits: tuple[str, dict[str, str]] | None = None
        self._limits_due = 0.0
        self._limits_problem = ""

    def set_state(self, state: PoolState | None) -> None:
        """Set what the Deployment reports; None: it is deleted."""
        self.state = state
        if state is None:
            self._applied = None

    def selector(self, config: QueueConfig) -> str:
        """Return the label selector of its pods."""
        return f"{QUEUE_LABEL}={config.name}"

    async def first_ordinal(self, config: QueueConfig) -> int | None:
        """Return None: its ReplicaSet follows deletion costs."""
        return None

    def set_available(self, available: int) -> None:
        """Do nothing: the Deployment reports it itself."""

    async def prepare(
        self, config: QueueConfig, *, replicas: int, secret: tuple[str, str] | None
    ) -> None:
        """Apply the Deployment if it differs from what the TaskQueue asks for."""
        shared = config.credentials.type is CredentialsType.SHARED
        usable: str | None = config.connection_secret
        if config.rabbitmq_cluster is not None or not shared:
            if secret is None:
                return  # it is not known, or not made yet; the pool in place goes on
            usable = secret[1] if secret[0] == config.namespace else None
        await self._sync_limits(config)
        if self._applied == (config, usable):
            return
        generation, until = self._refused
        if (
            self.refusal is not None
            and generation == config.generation
            and self._monotonic() < until
        ):
            return
        size, grace = replicas, 0
        if self.state is not None:
            size, grace = self.state.desired, self.state.grace
        try:
            self.state = await deployments.apply(
                self._client,
                config,
                replicas=size,
                secret=usable,
                grace=grace,
                installation=self._installation,
            )
        except InvalidTemplate as problem:
            self._refuse(config, "InvalidTemplate", f"{problem}: fix spec.workers.template")
        except ApiError as problem:
            if problem.status in (0, 429):
                raise  # says nothing about this Deployment: the API server is unavailable or busy
            invalid = problem.status in (400, 422) or _is_untyped(problem)
            reason = "InvalidTemplate" if invalid else "DeploymentRefused"
            remedy = "fix spec.workers.template" if invalid else "the operator tries again"
            self._refuse(
                config,
                reason,
                f"the API server rejected the worker Deployment: {problem.message}: {remedy}",
            )
        else:
            self._applied, self.refusal = (config, usable), None

    async def _sync_limits(self, config: QueueConfig) -> None:
        """Apply the ConfigMap with the limits of direct messages; the pods do not wait for it."""
        wanted = (config.uid, direct_limits(config))
        if wanted == self._limits or self._monotonic() < self._limits_due:
            return
        try:
            await apply_direct_limits(self._client, config)
        except ApiError as problem:
            self._limits_due = self._monotonic() + _REFUSED_PAUSE_SECONDS
            if problem.message != self._limits_problem:
                log.error(
                    "limits.apply_failed",
                    namespace=config.namespace,
                    queue=config.name,
                    error=problem.message,
                    hint="the operator tries again; it needs create and patch on ConfigMaps, "
                    "as in manifests/base/rbac.yaml",
                )
            self._limits_problem = problem.message
        else:
            self._limits, self._limits_problem = wanted, ""

    async def resize(self, config: QueueConfig, replicas: int) -> None:
        """Set the size by /scale."""
        try:
            await deployments.resize(self._client, config.key, replicas=replicas)
        except ApiError as problem:
            if problem.status != 404:
                raise
            self.set_state(None)
            return
        if self.state is not None:
            self.state = replace(self.state, desired=replicas)

    def _refuse(self, config: QueueConfig, reason: str, message: str) -> None:
        if self.refusal is None or self.refusal.message != message:
            log.warning(
                "pool.rejected", namespace=config.namespace, queue=config.name, error=message
            )
        self.refusal = WorkloadRefusal(reason, message)
        self._refused = (config.generation, self._monotonic() + _REFUSED_PAUSE_SECONDS)


def _is_untyped(problem: ApiError) -> bool:
    """Return whether the body violates the schema, which server-side apply answers with 500."""
    return problem.status == 500 and "failed to create typed patch object" in problem.message


class DeploymentListener:
    """Passes on what the informer shows of worker Deployments.

    Args:
        on_state: called with a queue's key, and what its Deployment reports; None: it is deleted.
    """

    def __init__(self, on_state: Callable[[QueueKey, PoolState | None], None]) -> None:
        self._on_state = on_state

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take a Deployment that is new or changed."""
        metadata = raw["metadata"]
        key = (metadata["namespace"], metadata["name"].removesuffix(SUFFIX))
        self._on_state(key, deployments.read_pool(raw))

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Go on with what was known of a Deployment."""
        (namespace, name), _ = identity(raw)
        log.error("deployment.unreadable", namespace=namespace, name=name, error=problem)

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Take note that a Deployment is deleted."""
        namespace, name = key
        self._on_state((namespace, name.removesuffix(SUFFIX)), None)
