"""How a process ended, in words, and the watch over the memory of those that run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection
from typing import Protocol

from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.memory import KillWatch, resident_mib
from taskqueue.worker.executors.process_spawner import ProcessExit
from taskqueue.worker.outcome import failure

#: How often the memory of processes with a limit is looked at, in seconds.
MEMORY_SECONDS = 0.5


def how_it_ended(ended: ProcessExit, kills: KillWatch) -> str:
    """Return what goes after "the process"."""
    if ended.problem:
        return f"could not be made: {ended.problem}"
    if ended.lost:
        return "went with the fork server"
    if ended.code >= 0:
        return f"ended with exit code {ended.code}"
    name = _signal_name(-ended.code)
    if name == "SIGKILL" and kills.struck():
        limit = kills.limit_mib()
        told = "" if limit is None else f" (limit {limit} MiB)"
        return f"was ended by SIGKILL: probably out of memory{told}"
    return f"was ended by {name}"


def over_limit(held_mib: float, limit_mib: int, seconds: float) -> AttemptResult:
    """Return the result of an attempt whose process held too much."""
    return failure(
        "MemoryLimit",
        f"its process held {held_mib:.0f} MiB and was killed: the limit is {limit_mib} MiB "
        "(memory_mib of the handler, or TASKQUEUE_CHILD_MEMORY_MIB); raise it, or use less",
        seconds,
    )


class MemoryLimitedProcess(Protocol):
    """A process that may have a limit."""

    @property
    def pid(self) -> int:
        """Its process id; 0: there is none now."""

    @property
    def limit_mib(self) -> int:
        """What it may hold; 0: anything."""

    def exceeded(self, held_mib: float) -> None:
        """It holds more."""


class MemoryWatch:
    """Looks at processes every `MEMORY_SECONDS` while one of them has a limit.

    Args:
        loop: everything here is called on it.
        processes: returns those there are.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        processes: Callable[[], Collection[MemoryLimitedProcess]],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """One with a limit is there."""
        if self._timer is None:
            self._timer = self._loop.call_later(MEMORY_SECONDS, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        limited = [each for each in self._processes() if each.limit_mib]
        for each in limited:
            held = resident_mib(each.pid) if each.pid else None
            if held is not None and held > each.limit_mib:
                each.exceeded(held)
        if limited:
            self.begin()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
