"""A worker, as its heartbeats describe it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

from taskqueue.limits import STATUS_HANDLERS, STATUS_HANDLERS_LENGTH


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


def shown_handlers(handlers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the handlers that a status lists; nobody needs the others."""
    sizes = itertools.accumulate(map(len, handlers[:STATUS_HANDLERS]))
    return handlers[: sum(size <= STATUS_HANDLERS_LENGTH for size in sizes)]
