"""Statistics of one of the broker's queues."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The number of messages in a queue, by the broker's statistics."""

    ready: int
    unacknowledged: int
