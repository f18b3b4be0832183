"""What the broker's statistics say of one of its queues."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What the broker's statistics say of a queue."""

    ready: int
    unacknowledged: int
