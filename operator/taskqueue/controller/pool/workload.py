"""What a TaskQueue's workers are replicas of: its own Deployment, or an object it refers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from taskqueue.kubernetes.deployments import PoolState
from taskqueue.model.queue import QueueConfig


@dataclass(frozen=True, slots=True)
class WorkloadRefusal:
    """Why workers cannot be had as asked; ``reason`` is CamelCase, ``message`` says what to do."""

    reason: str
    message: str


class Workload(Protocol):
    """Replicas of a worker, and how many there should be."""

    @property
    def state(self) -> PoolState | None:
        """What it says of itself; None: it is not there, or not known yet."""

    @property
    def refusal(self) -> WorkloadRefusal | None:
        """Why it is not as the TaskQueue asks; None: it is."""

    def selector(self, config: QueueConfig) -> str:
        """Return the label selector of its pods."""

    async def first_ordinal(self, config: QueueConfig) -> int | None:
        """Return the least number of its pods, of which the highest go; None: they have none.

        Raises:
            ApiError: the API server could not be asked; try again.
        """

    def counted(self, available: int) -> None:
        """Take how many of its pods are ready, in case it does not say that itself."""

    async def prepare(
        self, config: QueueConfig, *, replicas: int, secret: tuple[str, str] | None
    ) -> None:
        """Have it be there, as the TaskQueue asks.

        Args:
            config: what the TaskQueue asks for.
            replicas: size of one that is made anew; one that is there keeps its own.
            secret: (namespace, name) of the connection Secret; None: not found yet.

        Raises:
            ApiError: the API server could not be asked; try again.
        """

    async def resize(self, config: QueueConfig, replicas: int) -> None:
        """Set the size, and nothing else.

        Raises:
            ApiError: the API server could not be asked, or refuses; try again.
        """
