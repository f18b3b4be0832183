"""What the operator may command of workers."""

from __future__ import annotations

from enum import StrEnum


class CommandKind(StrEnum):
    """What is commanded."""

    #: Stop the attempt of this token, or do not begin it: the answer is task.cancelled.
    CANCEL = "cancel"
    #: The same, but the attempt will be published again: the answer is task.released.
    RELEASE = "release"
    #: Take no more work, finish what runs, and leave.
    DRAIN = "drain"
