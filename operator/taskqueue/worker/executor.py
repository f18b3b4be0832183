"""The interface between the runtime, which knows messages, and what runs an attempt.

The runtime starts an attempt and gets one call, on its own loop, when the attempt has ended and
holds no resource any more. It never knows whether a thread, a coroutine, a child process or a
remote service ran it. Time-outs are the runtime's: it asks for a cancel and reports without
waiting, so an executor that cannot stop an attempt keeps only the slot, not the Task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, field
from datetime import datetime
from typing import Any, Protocol

from taskqueue.contract.outcome import EventError
from taskqueue.model.result import ResultReference
from taskqueue.records import record
from taskqueue.results.reference import StoredResult
from taskqueue.worker.sdk import Progress


@record
class AttemptRequest:
    """What an executor needs to run one attempt.

    Attributes:
        handler: the name the message asked for; None: the default handler.
        payload: a JSON object; the executor may keep it, nothing else changes it.
        task: ``namespace/name``; ``namespace/queue`` for a direct message.
        uid: the Task's uid, or a direct message's correlation id, or empty.
        queue: name of the TaskQueue.
        attempt: 1-based.
        max_attempts: number of the last attempt.
        timeout_seconds: after this long the runtime asks for a cancel.
        fence: of a Task with a concurrencyKey, else None.
        epoch: repeated from the work message; None: a direct message, whose result no key names.
        checkpoint: what the handler saved before, as JSON, or None.
        checkpoint_known: False: a later one may exist, and only the operator knows.
        on_checkpoint: called on the runtime's loop with each checkpoint that the handler saves, as
            JSON; None: nobody keeps it.
        on_output: called on the runtime's loop with lines that the attempt has printed; None:
            nobody keeps them.
        scheduled_time: of the run of a TaskSchedule, else None.
        index: of an item of a TaskBatch, else None.
    """

    _: KW_ONLY
    handler: str | None
    payload: dict[str, Any]
    task: str
    uid: str
    queue: str
    attempt: int
    max_attempts: int
    timeout_seconds: float
    fence: int | None = None
    epoch: int | None = None
    checkpoint: bytes | None = field(default=None, repr=False)
    checkpoint_known: bool = True
    on_checkpoint: Callable[[bytes], None] | None = field(default=None, repr=False)
    on_output: Callable[[str], None] | None = field(default=None, repr=False)
    scheduled_time: datetime | None = None
    index: int | None = None

    @property
    def log_fields(self) -> dict[str, Any]:
        """Fields of log lines about it."""
        namespace, _, name = self.task.partition("/")
        return {
            "namespace": namespace,
            "queue": self.queue,
            "task": name,
            "uid": self.uid or None,
            "attempt": self.attempt,
            "handler": self.handler,
        }


@record
class AttemptResult:
    """How an attempt ended.

    Attributes:
        seconds: how long it ran.
        result: the JSON object it returned, or None; meaningless with an error.
        unstored: what it returned instead, which no status takes: only a store can keep it.
        reference: where what it returned is, in a store.
        error: why it failed; None: it succeeded.
        retry_after_seconds: the handler's wish for the next attempt.
        released: it did not end: the handler needs a checkpoint that its message has not.
        snooze_seconds: it did not end: the handler is to be called again after this long.
        exception: holds the traceback of the handler's exception, for the worker's own log.
        lost: why it is not known how the attempt ended, through no fault of its own; the other
            fields mean nothing then. The delivery is requeued, as if the worker had been lost.
        not_begun: why the handler was not called, through no fault of the attempt; the other fields
            mean nothing then. The attempt is given back, uncounted.
        output: the last lines that a failed attempt has printed, if they belong into its outcome.
    """

    _: KW_ONLY
    seconds: float
    result: dict[str, Any] | None = None
    unstored: StoredResult | None = None
    reference: ResultReference | None = None
    error: EventError | None = None
    retry_after_seconds: float | None = None
    released: bool = False
    snooze_seconds: float | None = None
    exception: BaseException | None = None
    lost: str = ""
    not_begun: str = ""
    output: str = ""

    @property
    def is_success(self) -> bool:
        """Whether the handler was called, and returned."""
        return (
            self.error is None
            and not self.released
            and self.snooze_seconds is None
            and not self.lost
            and not self.not_begun
        )


class Execution(Protocol):
    """An attempt that has been started."""

    @property
    def progress(self) -> Progress | None:
        """The latest progress reported, or None."""

    @property
    def killable(self) -> bool:
        """Whether `kill` works: then it may follow a `cancel` that had no effect."""

    def cancel(self) -> None:
        """Ask the attempt to end; harmless when it has ended. ``done`` is still called."""

    def kill(self) -> bool:
        """End the attempt by force, now, if it is `killable`; return whether it is.

        The attempt ends in a moment, and ``done`` is called then.
        """


class Executor(Protocol):
    """Runs attempts. All methods are called on the runtime's loop and do not block."""

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Run an attempt.

        ``done`` is called exactly once, on the runtime's loop and never inside ``start``, when
        the attempt holds no resource any more, however it ended. A handler that is not registered
        is a failed attempt like any other.
        """

    async def close(self, seconds: float = 0.0) -> None:
        """Abandon what still runs and free what can be freed; ``done`` may stay uncalled.

        Args:
            seconds: how long attempts that were asked to end may take.
        """
