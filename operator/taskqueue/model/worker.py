"""A worker, as its heartbeats describe it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """What a worker is doing."""

    READY = "ready"
    #: It takes no more work and finishes what it has.
    DRAINING = "draining"
    #: It runs nothing and has reported everything; its process may end at any time.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker that has registered.

    Attributes:
        pod: its name.
        node: the node it runs on; "" when it is not known.
        cpus: CPUs it may use.
        slots: attempts it runs at once.
        handlers: names it has code for.
    """

    pod: str
    node: str
    cpus: float
    slots: int
    handlers: tuple[str, ...]
