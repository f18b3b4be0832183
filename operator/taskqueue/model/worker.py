"""A worker as operator and worker speak of it: what it is and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """What a worker is doing."""

    READY = "ready"
    #: It takes nothing more and finishes what it has.
    DRAINING = "draining"
    #: It has nothing in hand, and all is told; its process may go at any time.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A registered machine.

    Attributes:
        pod: its name.
        node: the node it runs on; "" when it is not known.
        cpus: that it may use.
        slots: attempts it runs at once.
        handlers: names it has code for.
    """

    pod: str
    node: str
    cpus: float
    slots: int
    handlers: tuple[str, ...]
