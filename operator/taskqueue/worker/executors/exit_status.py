"""Describes how a process ended, and watches the memory of those that run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection
from typing import Protocol

from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.memory import OomKills, resident_mib
from taskqueue.worker.executors.process_spawner import ProcessExit
from taskqueue.worker.outcome import failure

#: Exit codes of a program, as sysexits.h has them, after which no other attempt is made.
EX_USAGE = 64
EX_DATAERR = 65

#: How often the memory of processes with a limit is read, in seconds.
MEMORY_SECONDS = 0.5


def describe_exit(status: ProcessExit, kills: OomKills) -> str:
    """Return how a process ended, as the predicate of a sentence about it."""
    if status.error:
        return f"could not be made: {status.error}"
    if status.lost:
        return "ended with the fork server"
    if status.code >= 0:
        return f"ended with exit code {status.code}"
    name = _signal_name(-status.code)
    if name == "SIGKILL" and kills.pop_new():
        limit = kills.limit_mib()
        suffix = "" if limit is None else f" (limit {limit} MiB)"
        return f"was ended by SIGKILL: probably out of memory{suffix}"
    return f"was ended by {name}"


def is_retryable(code: int) -> bool:
    """Return whether another attempt may help after a program that ended with this exit code."""
    return code not in (EX_USAGE, EX_DATAERR)


def over_limit(held_mib: float, limit_mib: int, seconds: float) -> AttemptResult:
    """Return the result of an attempt whose process held too much."""
    return failure(
        "MemoryLimit",
        f"its process held {held_mib:.0f} MiB and was killed: the limit is {limit_mib} MiB "
        "(memory_mib of the handler, or TASKQUEUE_CHILD_MEMORY_MIB); raise it, or use less",
        seconds,
    )


class MemoryLimitedProcess(Protocol):
    """A process that may have a memory limit."""

    @property
    def pid(self) -> int:
        """Its process id; 0: it has none now."""

    @property
    def limit_mib(self) -> int:
        """The most memory it may hold, in MiB; 0: no limit."""

    def on_limit_exceeded(self, held_mib: float) -> None:
        """Called when it holds more than its limit."""


class MemoryWatch:
    """Checks the memory of processes every `MEMORY_SECONDS` while one of them has a limit.

    Args:
        loop: everything here is called on it.
        processes: returns the processes to check.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        processes: Callable[[], Collection[MemoryLimitedProcess]],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start checking; harmless when it has started."""
        if self._timer is None:
            self._timer = self._loop.call_later(MEMORY_SECONDS, self._check)

    def close(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        limited = [process for process in self._processes() if process.limit_mib]
        for process in limited:
            held = resident_mib(process.pid) if process.pid else None
            if held is not None and held > process.limit_mib:
                process.on_limit_exceeded(held)
        if limited:
            self.start()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
