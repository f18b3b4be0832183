"""What a worker knows of one run: a value by stage, which can be printed.

A run is an attempt of a Task, or a direct message, that this worker was given. Each stage is a type
with the fields that mean something in it. Only `taskqueue.worker.run_machine` makes states. Pure.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, field
from typing import Any, Protocol

from taskqueue.model.command import CommandKind
from taskqueue.records import record

#: Stands for a delivery that is not acknowledged yet; opaque here.
Receipt = Any


class Failure(Protocol):
    """Why an attempt failed."""

    @property
    def retryable(self) -> bool:
        """Whether it makes sense to try again."""


class Result(Protocol):
    """How an execution ended: what is read of `taskqueue.worker.executor.AttemptResult` here."""

    @property
    def seconds(self) -> float:
        """How long it ran."""

    @property
    def error(self) -> Failure | None:
        """Why it failed; None: it succeeded."""

    @property
    def released(self) -> bool:
        """Whether it was given back, because its message is too old."""

    @property
    def lost(self) -> str:
        """Why it is not known how it ended; "" if it is."""

    @property
    def not_begun(self) -> str:
        """Why the handler was not called, through no fault of the attempt; "" if it was."""


@record
class TimedOut:
    """The attempt did not end within its time."""

    timeout_seconds: float


@record
class WorkerLost:
    """The attempt was delivered this often before, and no outcome came."""

    deliveries: int


@record
class Stopped:
    """The operator commanded to stop it, after it had run this long."""

    command: CommandKind
    seconds: float


@record
class Released:
    """This worker does not run it, or not to its end."""


#: How a run ended, as it is reported.
Report = Result | TimedOut | WorkerLost | Stopped | Released


@record
class Run:
    """What is to be run; subclasses know the message.

    Attributes:
        token: what every event about it repeats; "" for a direct message.
        keyed: it has a concurrency key; see `taskqueue.worker.keyed_guard`.
        deliveries: how often the broker had delivered it before.
        max_deliveries: delivered this often before, it is not run.
        timeout_seconds: how long it may run.
        returned: delivered before, it is given back: the operator knows whether another worker runs
            it, and its last checkpoint.
    """

    token: str
    keyed: bool
    deliveries: int
    max_deliveries: int
    timeout_seconds: float
    _: KW_ONLY
    returned: bool = False


@record
class Queued:
    """Waits for a slot."""

    run: Run
    receipts: tuple[Receipt, ...] = field(repr=False)


@record
class Blocked:
    """Waits for the end of an earlier execution of the same keyed attempt."""

    run: Run
    receipts: tuple[Receipt, ...] = field(repr=False)


@record
class Running:
    """Is executed, and its end is open.

    Attributes:
        started_at: on the loop's clock.
        start_reported: it has run long enough for its start to be published.
    """

    run: Run
    receipts: tuple[Receipt, ...] = field(repr=False)
    started_at: float
    start_reported: bool = False


@record
class Ending:
    """Was asked to end: its end is decided, and its execution keeps the slot.

    Attributes:
        started_at: on the loop's clock.
        awaited: the report that is published and not yet confirmed.
        pending: a keyed run: the report to publish when the execution has ended.
        disowned: the broker may deliver it to another worker: nothing is reported.
        next_id: the same attempt, delivered again, which waits for the end of this execution.
        end_by: a keyed run: when its execution must have ended, on the loop's clock.
        silenced: it was stopped because the broker was silent, which may be over in time.
        killed: its execution was killed, and ends in a moment.
    """

    run: Run
    receipts: tuple[Receipt, ...] = field(repr=False)
    started_at: float
    _: KW_ONLY
    awaited: Report | None = None
    pending: Report | None = None
    disowned: bool = False
    next_id: int | None = None
    end_by: float | None = None
    silenced: bool = False
    killed: bool = False


@record
class Ended:
    """Has ended; ``awaited`` is published and not yet confirmed."""

    run: Run
    receipts: tuple[Receipt, ...] = field(repr=False)
    awaited: Report


RunState = Queued | Blocked | Running | Ending | Ended
