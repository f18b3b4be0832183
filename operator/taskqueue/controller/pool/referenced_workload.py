"""The workload that spec.workers.scaleTargetRef names: anything with a /scale subresource.

Somebody else creates it, and gives its pods their environment; the operator reads and sets its size
only. The size is read every few seconds, because others may set it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from taskqueue.controller.pool.workload import WorkloadRefusal
from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.scale import ScaleTarget, TargetUnusable
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, ScaleTargetRef

log = EventLog(__name__)

#: It is read this often.
_READ_SECONDS = 2.0


class ReferencedWorkload:
    """Reads and sets the size; a `taskqueue.controller.pool.workload.Workload`.

    Args:
        client: for the API server.
        monotonic: seconds that never jump.

    Attributes:
        state: what it reports; None: not known.
        refusal: why it cannot be read or sized; None: it can.
    """

    def __init__(self, client: ApiClient, *, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._target: ScaleTarget | None = None
        self._ref: ScaleTargetRef | None = None
        self._selector = ""
        self._next_read = float("-inf")
        self.state: PoolState | None = None
        self.refusal: WorkloadRefusal | None = None

    def selector(self, config: QueueConfig) -> str:
        """Return the label selector of its pods, as its scale gives it."""
        return self._selector

    async def first_ordinal(self, config: QueueConfig) -> int | None:
        """Return the lowest ordinal of a StatefulSet's pods; None: it is none."""
        if self._target is None or not self._target.ordered:
            return None
        try:
            return await self._target.first_ordinal()
        except TargetUnusable as problem:
            self._refuse(config, problem)
            return None

    def set_available(self, available: int) -> None:
        """Set how many of its pods are ready: a scale does not report it."""
        if self.state is not None:
            self.state = replace(self.state, available=available)

    async def read(self, config: QueueConfig, *, conflict: str) -> None:
        """Read its size, if that is due.

        Args:
            config: what the TaskQueue asks for.
            conflict: why this TaskQueue must not size it; "": it may.

        Raises:
            ApiError: the API server could not be asked; try again.
        """
        if config.scale_target != self._ref:
            self._clear_target()
            self._ref, self.refusal = config.scale_target, None
            self._next_read = float("-inf")
        if self._ref is None or self._monotonic() < self._next_read:
            return
        self._next_read = self._monotonic() + _READ_SECONDS
        if conflict:
            self._refuse(config, TargetUnusable("ScaleTargetUnusable", conflict))
            return
        try:
            if self._target is None:
                self._target = await ScaleTarget.find(self._client, config.namespace, self._ref)
            scale = await self._target.read()
        except TargetUnusable as problem:
            self._refuse(config, problem)
            return
        self.refusal = None
        self._selector = scale.selector
        known = 0 if self.state is None else self.state.available
        self.state = PoolState(
            desired=scale.replicas,
            replicas=scale.current,
            available=min(known, scale.current),
            message="",
        )

    async def prepare(
        self, config: QueueConfig, *, replicas: int, secret: tuple[str, str] | None
    ) -> None:
        """Do nothing: somebody else creates it."""

    async def resize(self, config: QueueConfig, replicas: int) -> None:
        """Set its size by /scale."""
        if self._target is None or self.state is None:
            return
        try:
            await self._target.resize(replicas)
        except TargetUnusable as problem:
            self._refuse(config, problem)
            return
        self.state = replace(self.state, desired=replicas)

    def _refuse(self, config: QueueConfig, problem: TargetUnusable) -> None:
        if self.refusal is None or self.refusal.message != problem.message:
            log.warning(
                "pool.rejected",
                namespace=config.namespace,
                queue=config.name,
                error=problem.message,
            )
        self.refusal = WorkloadRefusal(problem.reason, problem.message)
        self._clear_target()

    def _clear_target(self) -> None:
        self._target = self.state = None
        self._selector = ""
