"""What may happen to a run: the inputs of `taskqueue.worker.run_machine.step`.

Times are of the loop's clock.
"""

from __future__ import annotations

from taskqueue.model.command import CommandKind
from taskqueue.records import record
from taskqueue.worker.run_state import Receipt, Result


@record
class SlotFree:
    """It is the next to start."""

    now: float


@record
class DeliveredAgain:
    """The broker delivered its token once more."""

    receipt: Receipt


@record
class NextDelivered:
    """The same keyed attempt was delivered again, as another run, while its execution ends."""

    next_id: int


@record
class ExecutionEnded:
    """Its execution holds nothing any more."""

    result: Result


@record
class AttemptDue:
    """Its attempt timer is due; ``killable``: its execution can be ended by force."""

    now: float
    killable: bool


@record
class EndDue:
    """Its end timer is due: the execution of a keyed run should have ended.

    Attributes:
        now: the time.
        killable: whether the execution can be ended by force.
        seconds_left: before the broker may redeliver.
    """

    now: float
    killable: bool
    seconds_left: float


@record
class CommandReceived:
    """The operator commands to stop it."""

    kind: CommandKind
    now: float


@record
class ConnectionLost:
    """The connection its deliveries came by is lost: the broker redelivers what it had sent."""

    now: float


@record
class BrokerSilent:
    """The broker is silent, and may redeliver in so many seconds."""

    now: float
    seconds_left: float


@record
class PublisherReady:
    """There is a new publisher: the old one may have lost what was published once."""


@record
class PrefetchLowered:
    """This worker should hold fewer messages."""


@record
class DrainBegun:
    """The worker starts nothing more."""


@record
class GraceEnded:
    """The worker ends soon, and waits no longer for what runs."""

    now: float


@record
class ConnectionsClosing:
    """The connections close next: the broker redelivers what is not acknowledged."""


@record
class OutcomeConfirmed:
    """The broker has its report."""


@record
class DeadLetterConfirmed:
    """The broker has its message as a dead letter."""


Event = (
    SlotFree
    | DeliveredAgain
    | NextDelivered
    | ExecutionEnded
    | AttemptDue
    | EndDue
    | CommandReceived
    | ConnectionLost
    | BrokerSilent
    | PublisherReady
    | PrefetchLowered
    | DrainBegun
    | GraceEnded
    | ConnectionsClosing
    | OutcomeConfirmed
    | DeadLetterConfirmed
)
