"""How a sink of the ends of a TaskQueue's Tasks is, for its condition."""

from __future__ import annotations

from dataclasses import dataclass

#: With more ends in its outbox a sink is behind.
MANY_WAITING = 1000


@dataclass(frozen=True, slots=True)
class SinkState:
    """How a sink is.

    Attributes:
        connected: whether it takes ends; None: not known yet.
        reason: CamelCase.
        message: what is the matter with it, and what to do; "": nothing.
    """

    connected: bool | None = None
    reason: str = "Connecting"
    message: str = ""
