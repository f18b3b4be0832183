"""The second argument of a handler: its attempt, progress and cancellation."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, SupportsFloat, SupportsIndex

from taskqueue.worker.sdk.arguments import number, text
from taskqueue.worker.sdk.checkpoints import (
    CheckpointNeeded,
    decode_checkpoint,
    encode_checkpoint,
)
from taskqueue.worker.sdk.failures import Snooze


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an attempt: percent from 0 to 100, or None, and a message for people."""

    percent: float | None
    message: str


class Context:
    """Describes the attempt a handler runs, and takes its progress. Safe in any thread.

    Attributes:
        task: ``namespace/name`` of the Task; ``namespace/queue`` for a direct message.
        uid: the Task's uid, the same in every attempt; a direct message's correlation id.
        queue: name of the TaskQueue.
        attempt: 1-based.
        max_attempts: the last attempt has this number.
        timeout_seconds: the attempt is given up after this long.
        fence: of a Task with a concurrencyKey, else None: a number that grows with every dispatch
            of the key. Pass it to the storage you write to, and have it refuse a write with a lower
            one than it has seen: a worker that was disconnected or paused may write late.
        scheduled_time: of the run of a TaskSchedule, else None: its time as the schedule has it, in
            UTC. Work on this, not on the present time: a run may be late, or made up for.
        index: of an item of a TaskBatch, from 0, else None. ``task`` is the TaskBatch then, and
            ``uid`` is of the item alone.
        logger: a `logging` logger whose lines carry task, uid and attempt.

    Executors give what the message says besides: ``checkpoint``, encoded, and whether it is
    ``checkpoint_known`` to be the last; and ``save``, which gets each checkpoint, encoded.
    """

    __slots__ = (
        "_cancelled",
        "_checkpoint",
        "_checkpoint_known",
        "_latest",
        "_logger",
        "_save",
        "attempt",
        "fence",
        "index",
        "max_attempts",
        "queue",
        "scheduled_time",
        "task",
        "timeout_seconds",
        "uid",
    )

    def __init__(
        self,
        *,
        task: str,
        uid: str,
        queue: str,
        attempt: int,
        max_attempts: int,
        timeout_seconds: float,
        fence: int | None = None,
        checkpoint: bytes | None = None,
        checkpoint_known: bool = True,
        save: Callable[[bytes], None] | None = None,
        scheduled_time: datetime | None = None,
        index: int | None = None,
    ) -> None:
        self.task = task
        self.uid = uid
        self.queue = queue
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.timeout_seconds = timeout_seconds
        self.fence = fence
        self.scheduled_time = scheduled_time
        self.index = index
        self._checkpoint = checkpoint
        self._checkpoint_known = checkpoint_known
        self._save = save
        self._latest: Progress | None = None
        self._cancelled = False
        self._logger: logging.LoggerAdapter[logging.Logger] | None = None

    def progress(self, percent: float | None = None, message: str = "") -> None:
        """Report progress; the latest call counts, earlier ones may never be seen.

        Raises:
            TypeError: percent is no number, or the message no text.
            ValueError: percent is outside 0 to 100.
        """
        if percent is not None:
            percent = number(percent, "progress(percent)")
            if not 0 <= percent <= 100:
                raise ValueError(f"progress({percent}): percent goes from 0 to 100")
        self._latest = Progress(percent, text(message, "progress(message=...)"))
        self.logger.debug("task.progress %s %s", percent, message)

    def checkpoint(self, value: Any) -> None:
        """Save a value for the next start of this Task's handler; the latest call counts.

        It is on its way when this returns: of a worker that is killed in this moment, the one
        before may be the last. Of a direct message nothing is kept.

        Args:
            value: JSON, a model or a dataclass; at most 16 KiB.

        Raises:
            TypeError: JSON has no such value.
            ValueError: it is too large.
        """
        encoded = encode_checkpoint(value)
        self._checkpoint, self._checkpoint_known = encoded, True
        save = self._save
        if save is not None:
            save(encoded)

    @property
    def last_checkpoint(self) -> Any:
        """What was saved last, in this attempt or before it; None: nothing. Read it first of all.

        Raises:
            CheckpointNeeded: the worker that had the attempt was lost, and only the operator knows;
                let it pass: the handler is called again, uncounted.
        """
        if not self._checkpoint_known:
            raise CheckpointNeeded
        return None if self._checkpoint is None else decode_checkpoint(self._checkpoint)

    def snooze(self, seconds: SupportsFloat | SupportsIndex) -> NoReturn:
        """End this attempt, and have the handler called again after some seconds, up to 30 days.

        It costs no attempt, and may be done 1,000 times. The Task's deadline still counts. A direct
        message cannot be snoozed: it fails.

        Raises:
            Snooze: always; let it pass.
            TypeError: ``seconds`` is no number.
            ValueError: ``seconds`` is negative, or more than 30 days.
        """
        raise Snooze(seconds)

    @property
    def latest_progress(self) -> Progress | None:
        """The last progress reported, or None."""
        return self._latest

    @property
    def cancelled(self) -> bool:
        """True once the attempt's result is no longer wanted.

        It was cancelled or suspended, has timed out, its worker stops, or, with a fence, the broker
        may give it to another worker.
        A sync handler in a thread cannot be stopped from outside: a long one must check this and
        return.
        """
        return self._cancelled

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry this attempt's fields."""
        if self._logger is None:
            fields = {"task": self.task, "uid": self.uid, "attempt": self.attempt}
            self._logger = _AttemptLogger(logging.getLogger("taskqueue.handler"), fields)
        return self._logger


def mark_cancelled(context: Context) -> None:
    """Make ``context.cancelled`` true; for executors."""
    context._cancelled = True


def mark_ended(context: Context) -> None:
    """Save no more checkpoints: the attempt has ended; for executors in the worker's process."""
    context._save = None


class _AttemptLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the attempt's fields to every record, where `taskqueue.logs` finds them."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(kwargs.get("extra") or {})
        extra["fields"] = self.extra
        kwargs["extra"] = extra
        return msg, kwargs
