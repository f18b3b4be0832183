"""The workload of a TaskQueue's workers: its own Deployment, or an object that it refers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from taskqueue.kubernetes.deployments import PoolState
from taskqueue.model.queue import QueueConfig


@dataclass(frozen=True, slots=True)
class WorkloadRefusal:
    """Why the workload is not as asked; ``reason`` is CamelCase, ``message`` says what to do."""

    reason: str
    message: str


class Workload(Protocol):
    """Something with replicas of a worker, whose size the operator sets."""

    @property
    def state(self) -> PoolState | None:
        """What it reports; None: it does not exist, or is not known yet."""

    @property
    def refusal(self) -> WorkloadRefusal | None:
        """Why it is not as the TaskQueue asks; None: it is."""

    def selector(self, config: QueueConfig) -> str:
        """Return the label selector of its pods."""

    async def first_ordinal(self, config: QueueConfig) -> int | None:
        """Return the lowest ordinal of its pods, of which the highest go; None: no ordinals.

        Raises:
            ApiError: the API server could not be asked; try again.
        """

    def set_available(self, available: int) -> None:
        """Set how many of its pods are ready, in case it does not report that itself."""

    async def prepare(
        self, config: QueueConfig, *, replicas: int, secret: tuple[str, str] | None
    ) -> None:
        """Create or update it, as the TaskQueue asks.

        Args:
            config: what the TaskQueue asks for.
            replicas: size of a new one; one that exists keeps its own.
            secret: (namespace, name) of the workers' Secret; None: not known yet.

        Raises:
            ApiError: the API server could not be asked; try again.
        """

    async def resize(self, config: QueueConfig, replicas: int) -> None:
        """Set the size, and nothing else.

        Raises:
            ApiError: the API server could not be asked, or rejected it; try again.
        """
