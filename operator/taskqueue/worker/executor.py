"""The seam between the runtime, which knows messages, and whatever runs an attempt.

The runtime starts an attempt and is told once, on its own loop, when the attempt has ended and
holds nothing any more. It never knows whether a thread, a coroutine, a child process or a remote
service ran it. Time-outs are the runtime's: it asks for a cancel and reports without waiting, so
an executor that cannot stop an attempt keeps only the slot, not the Task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from taskqueue.broker.events import EventError
from taskqueue.worker.sdk import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What an executor needs to run one attempt.

    Attributes:
        handler: the name the message asked for; None: the default handler.
        payload: a JSON object; the executor may keep it, nobody else changes it.
        task: ``namespace/name``; ``namespace/queue`` for a direct message.
        uid: the Task's uid, or a direct message's correlation id, or empty.
        queue: name of the TaskQueue.
        attempt: 1-based.
        max_attempts: number of the last attempt.
        timeout_seconds: after this long the runtime asks for a cancel.
        fence: of a Task with a concurrencyKey, else None.
    """

    handler: str | None
    payload: dict[str, Any]
    task: str
    uid: str
    queue: str
    attempt: int
    max_attempts: int
    timeout_seconds: float
    fence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """How an attempt ended.

    Attributes:
        seconds: how long it ran.
        result: the JSON object it returned, or None; meaningless with an error.
        error: why it failed; None: it succeeded.
        retry_after_seconds: the handler's wish for the next attempt.
        exception: the exception itself where there is one, for the worker's own log.
    """

    seconds: float
    result: dict[str, Any] | None = None
    error: EventError | None = None
    retry_after_seconds: float | None = None
    exception: BaseException | None = None


class Execution(Protocol):
    """An attempt that has been started."""

    @property
    def progress(self) -> Progress | None:
        """The latest progress told, or None."""

    def cancel(self) -> None:
        """Ask the attempt to end; harmless when it has ended. ``done`` is still called."""


class Executor(Protocol):
    """Runs attempts. All methods are called on the runtime's loop and do not block."""

    def start(self, attempt: Attempt, done: Callable[[AttemptResult], None]) -> Execution:
        """Run an attempt.

        ``done`` is called exactly once, on the runtime's loop and never inside ``start``, when
        the attempt holds no resource any more, however it ended. A handler nobody registered is
        a failed attempt like any other.
        """

    def close(self) -> None:
        """Give up what still runs and free what can be freed; ``done`` may stay uncalled."""
