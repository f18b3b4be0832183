"""What is to be done for a run: the outputs of `taskqueue.worker.run_machine.step`.

The runtime executes them in order and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Literal

from taskqueue.records import record
from taskqueue.worker.run_state import Receipt, Report, Result


class Timer(Enum):
    """The timers of a run."""

    #: Its start is to be reported, or its time is over, or it should have ended by now.
    ATTEMPT = auto()
    #: The execution of a keyed run must have ended.
    END = auto()


@record
class Enqueue:
    """Queue it for a slot."""


@record
class Dequeue:
    """Remove it from the queue."""


@record
class StartExecution:
    """Start its execution in a slot, with its attempt timer due at a time."""

    timer_at: float


@record
class CancelExecution:
    """Ask its execution to end."""


@record
class KillExecution:
    """End its execution by force."""


@record
class SetTimer:
    """Set or move a timer, to a time of the loop's clock."""

    timer: Timer
    at: float


@record
class DropTimer:
    """Remove a timer."""

    timer: Timer


@record
class ReportStarted:
    """Publish that it runs, once: losing it delays the phase, nothing else."""


@record
class PublishOutcome:
    """Publish a report until it is confirmed; what ends the attempt is kept for repetition."""

    report: Report


@record
class DeadLetter:
    """Publish its message as a dead letter, until that is confirmed, with the report as reason."""

    report: Report


@record
class Acknowledge:
    """Acknowledge deliveries."""

    receipts: tuple[Receipt, ...]


@record
class Requeue:
    """Return deliveries to the queue, if their channel is open; the broker counts it."""

    receipts: tuple[Receipt, ...]


@record
class Reject:
    """Return deliveries to the queue as failed; the broker counts it."""

    receipts: tuple[Receipt, ...]


@record
class FreeToken:
    """Let a new delivery of its token be another run."""


@record
class AdmitNext:
    """Admit the run that was blocked by this one."""

    next_id: int


@record
class RecordResult:
    """Its execution ended by itself: log how, and count its time for the prefetch."""

    result: Result


@record
class CountLongRun:
    """An execution has not ended after so many seconds: the prefetch is lowered."""

    seconds: float


@record
class CountRedelivery:
    """It was delivered before: the prefetch is lowered for a while."""


@record
class LogEnd:
    """Log how it ended without a result of its own."""

    report: Report


@record
class Log:
    """Log an event with the run's fields and these."""

    level: Literal["info", "warning"]
    event: str
    fields: Mapping[str, Any]


@record
class Abort:
    """End the process: nothing else can end its execution."""


Effect = (
    Enqueue
    | Dequeue
    | StartExecution
    | CancelExecution
    | KillExecution
    | SetTimer
    | DropTimer
    | ReportStarted
    | PublishOutcome
    | DeadLetter
    | Acknowledge
    | Requeue
    | Reject
    | FreeToken
    | AdmitNext
    | RecordResult
    | CountLongRun
    | CountRedelivery
    | LogEnd
    | Log
    | Abort
)
