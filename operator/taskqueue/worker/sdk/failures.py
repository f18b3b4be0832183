"""Exceptions for handlers: how an attempt failed, is put off, or was cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

from taskqueue.limits import LONGEST_SNOOZE_SECONDS
from taskqueue.worker.sdk.arguments import number, text


class Retry(Exception):
    """Raised by a handler: this attempt failed, try again.

    Args:
        message: for people; it becomes the attempt's message in the Task's history.
        after: seconds until the next attempt, any number; None: the Task's own back-off.

    Raises:
        TypeError: ``after`` is no number.
        ValueError: ``after`` is negative, or no finite number.
    """

    #: Also of a subclass that does not call `__init__`.
    after: float | None = None

    def __init__(
        self,
        message: object = "the handler asked for a retry",
        *,
        after: SupportsFloat | SupportsIndex | None = None,
    ) -> None:
        super().__init__(message)
        if after is not None:
            seconds = number(after, "Retry(after=...)")
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"Retry(after={after}): give seconds, 0 or more")
            self.after = seconds


class Fail(Exception):
    """Raised by a handler: this Task has failed and another attempt cannot help.

    Args:
        message: for people.
        type: a CamelCase word for programs; it becomes the error's type.

    Raises:
        TypeError: ``type`` is no text.
        ValueError: ``type`` is empty.
    """

    #: Also of a subclass that does not call `__init__`.
    type: str = "Fail"

    def __init__(self, message: object = "the handler gave up", *, type: str = "Fail") -> None:
        super().__init__(message)
        given = text(type, "Fail(type=...)")
        if not given:
            raise ValueError('Fail(type=""): give a CamelCase word, such as "NotFound"')
        self.type = given


class Snooze(BaseException):
    """Raised by a handler: call me again later. It costs no attempt; `Context.snooze` raises it.

    The Task is Scheduled until then, with its worker free for others. It is not an `Exception`, so
    ``except Exception`` does not catch it.

    Args:
        seconds: until then, any number up to 30 days.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: ``seconds`` is negative, or more than 30 days.
    """

    #: Also of a subclass that does not call `__init__`.
    seconds: float = 0.0

    def __init__(self, seconds: SupportsFloat | SupportsIndex) -> None:
        wait = number(seconds, "Snooze(seconds)")
        if not 0 <= wait <= LONGEST_SNOOZE_SECONDS:
            raise ValueError(f"Snooze({seconds}): give seconds, 0 to {LONGEST_SNOOZE_SECONDS}")
        super().__init__(f"the handler asked to be called again in {wait:g} s")
        self.seconds = wait


class Cancelled(BaseException):
    """Raised in a sync handler in a child process when its attempt is to end.

    It was cancelled or suspended, has timed out, or its worker stops; ``ctx.cancelled`` is true.
    Clean up in ``finally`` and let it pass: the process is killed a few seconds later. It is not an
    `Exception`, so ``except Exception`` does not catch it, as with asyncio's ``CancelledError``.
    """

    def __init__(self, message: str = "the attempt is to end") -> None:
        super().__init__(message)


class InvalidPayload(Fail):
    """The payload is not what the handler's annotation asks for; another attempt cannot help.

    Args:
        message: for people; it names the handler, and each wrong field with what is wrong.
        fields: the wrong fields, as ``sizes.0``; the payload as a whole is an empty string.
    """

    def __init__(self, message: str, *, fields: Sequence[str] = ()) -> None:
        super().__init__(message, type="InvalidPayload")
        self.fields = tuple(fields)
