"""One attempt in a worker's hands: what to run, the deliveries that wait, and how its end is told.

A Task's end is told by an event, a direct message's by an event and by what becomes of the message.
Either way the delivery is acknowledged only when the broker has confirmed what there was to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.command import CommandKind
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.outgoing import OutgoingMessage, dead_letter, outcome_message
from taskqueue.contract.work import WorkMessage
from taskqueue.worker.acknowledger import Acknowledger
from taskqueue.worker.attempt_events import direct_event, event_of, kind_of, stopped_event
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.outcome_cache import CachedOutcome, OutcomeCache
from taskqueue.worker.outcome_outbox import OutcomeOutbox


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """What runs need to tell their end.

    Attributes:
        namespace: of the worker's TaskQueue.
        queue: name of the worker's TaskQueue.
        worker: what events call this worker.
        direct_max_deliveries: attempts of a direct message.
        reporter: publishes until confirmed.
        finished: outcomes of tokens ended lately.
        by_token: runs whose token must not be run a second time: waiting, running, or ended and
            not yet confirmed.
    """

    namespace: str
    queue: str
    worker: str
    direct_max_deliveries: int
    reporter: OutcomeOutbox
    finished: OutcomeCache = field(default_factory=OutcomeCache)
    by_token: dict[str, TaskRun] = field(default_factory=dict)

    def bury(self, delivery: Delivery, reason: str) -> OutgoingMessage:
        """Return the delivery as a dead letter, to be reported."""
        return dead_letter(
            delivery.properties,
            delivery.body,
            namespace=self.namespace,
            queue=self.queue,
            reason=reason,
        )


class Run(ABC):
    """An attempt, waiting for a slot, running, or ended and not yet confirmed.

    Attributes:
        attempt: what to run.
        delivery: the one it came by; others of the same token may have joined.
        deliveries: how often the broker had delivered it before.
        execution: None until it has a slot.
        started_at: on the loop's clock; 0 before it has a slot.
        announced: it has been running for a while, and that has been told.
        settled: its end is decided; whatever comes later does not count.
        farewell: called when the execution of a settled run has ended: what was to wait for that.
        cut: the broker may deliver it to another worker: nothing is told of it.
        successor: the same attempt, delivered again while the execution of this one is ending.
    """

    __slots__ = (
        "_desk",
        "_leases",
        "announced",
        "attempt",
        "cut",
        "deliveries",
        "delivery",
        "execution",
        "farewell",
        "settled",
        "started_at",
        "successor",
    )

    def __init__(
        self, desk: RunServices, attempt: AttemptRequest, delivery: Delivery, deliveries: int
    ) -> None:
        self._desk = desk
        self.attempt = attempt
        self.delivery = delivery
        self.deliveries = deliveries
        self.execution: Execution | None = None
        self.started_at = 0.0
        self.announced = False
        self.settled = False
        self.cut = False
        self.farewell: Callable[[], None] | None = None
        self.successor: TaskRun | None = None
        self._leases: list[tuple[Acknowledger, int]] = []

    @property
    def token(self) -> str:
        """What every event about it repeats; empty for a direct message."""
        return ""

    @property
    def keyed(self) -> bool:
        """Whether it has a concurrency key: see `taskqueue.worker.keyed_guard`."""
        return self.attempt.fence is not None

    @property
    def killable(self) -> bool:
        """Whether its execution can be ended by force."""
        return self.execution is not None and self.execution.killable

    @property
    @abstractmethod
    def max_deliveries(self) -> int:
        """At this many deliveries before, it is not run."""

    @abstractmethod
    def tell_started(self) -> None:
        """Tell that it is running; told again after a reconnect."""

    @abstractmethod
    def tell_ended(self, result: AttemptResult) -> None:
        """Tell its result."""

    @abstractmethod
    def tell_released(self) -> None:
        """Give it back without a result."""

    @abstractmethod
    def forget(self) -> None:
        """Its deliveries are worthless and it never ran: the broker delivers it again."""

    def join(self, acknowledger: Acknowledger, delivery: Delivery) -> None:
        """Have this delivery settled with the run."""
        self._leases.append((acknowledger, delivery.delivery_tag))

    def acknowledge(self) -> None:
        """What there was to say is with the broker: the deliveries are done with."""
        for acknowledger, tag in self._leases:
            acknowledger.confirm(tag)
        self._leases.clear()

    def give_back(self) -> None:
        """Return its deliveries to the queue, where they can still be; the broker counts it."""
        for acknowledger, tag in self._leases:
            acknowledger.give_back(tag)
        self._leases.clear()

    @property
    def fields(self) -> dict[str, Any]:
        """What log lines about it say."""
        return self.attempt.log_fields


class TaskRun(Run):
    """An attempt of a Task: its end is an event that repeats the token."""

    __slots__ = ("_message",)

    @property
    def token(self) -> str:
        """What every event about it repeats."""
        return self._message.token

    def __init__(
        self,
        desk: RunServices,
        message: WorkMessage,
        attempt: AttemptRequest,
        delivery: Delivery,
        deliveries: int,
    ) -> None:
        super().__init__(desk, attempt, delivery, deliveries)
        self._message = message
        desk.by_token[message.token] = self

    @property
    def described(self) -> RunningAttempt:
        """What a heartbeat tells of it."""
        progress = None if self.execution is None else self.execution.progress
        if progress is None:
            return RunningAttempt(self.attempt.uid, self.token)
        percent = None if progress.percent is None else int(progress.percent)
        return RunningAttempt(self.attempt.uid, self.token, percent, progress.message)

    @property
    def max_deliveries(self) -> int:
        """The Task's own."""
        return self._message.max_deliveries

    def tell_started(self) -> None:
        """Publish task.started once; losing it costs nothing but a look."""
        outcome = event_of(self._message, EventKind.STARTED, worker=self._desk.worker)
        self._desk.reporter.mention(outcome_message(outcome.key, outcome.body))

    def tell_ended(self, result: AttemptResult) -> None:
        """Publish the outcome until confirmed, and remember it."""
        self._tell(
            event_of(self._message, kind_of(result), worker=self._desk.worker, result=result)
        )

    def tell_stopped(self, order: CommandKind, seconds: float) -> None:
        """Publish the answer to an order until confirmed, and remember it."""
        self._tell(stopped_event(self._message, order, worker=self._desk.worker, seconds=seconds))

    def tell_released(self) -> None:
        """Publish task.released until confirmed: the operator publishes the attempt again.

        The token is free at once: the operator may be quicker than our confirm, and a delivery
        that joined this run would be acknowledged without ever having run.
        """
        self.forget()
        outcome = event_of(self._message, EventKind.RELEASED, worker=self._desk.worker)
        self._desk.reporter.report(outcome_message(outcome.key, outcome.body), self.acknowledge)

    def forget(self) -> None:
        """Free the token."""
        if self._desk.by_token.get(self._message.token) is self:
            del self._desk.by_token[self._message.token]

    def _tell(self, outcome: CachedOutcome) -> None:
        self._desk.finished.add(self._message.token, outcome)
        self._desk.reporter.report(outcome_message(outcome.key, outcome.body), self._confirmed)

    def _confirmed(self) -> None:
        self.forget()
        self.acknowledge()


class DirectRun(Run):
    """A direct message: success acknowledges it, failure returns it, the last one buries it.

    Its end is told by an event, before the message is gone; a failure that is tried again is none.
    """

    __slots__ = ()

    @property
    def max_deliveries(self) -> int:
        """The queue's."""
        return self._desk.direct_max_deliveries

    def tell_started(self) -> None:
        """Nobody keeps a record of direct messages."""

    def tell_ended(self, result: AttemptResult) -> None:
        """Acknowledge, return as failed, or move to the queue of given-up messages."""
        if result.error is None:
            self._report(result, self.acknowledge)
        elif result.error.retryable and self.deliveries + 1 < self.max_deliveries:
            for acknowledger, tag in self._leases:
                acknowledger.reject(tag)
            self._leases.clear()
        else:
            letter = self._desk.bury(self.delivery, f"{result.error.type}: {result.error.message}")
            reporter = self._desk.reporter
            self._report(result, lambda: reporter.report(letter, self.acknowledge))

    def tell_released(self) -> None:
        """Return it to the queue; the broker counts that as a delivery, there is no other way."""
        self.give_back()

    def forget(self) -> None:
        """Nothing is remembered of it."""

    def _report(self, result: AttemptResult, on_confirmed: Callable[[], None]) -> None:
        outcome = direct_event(
            self.attempt,
            result,
            namespace=self._desk.namespace,
            worker=self._desk.worker,
            message_id=self.delivery.properties.message_id or "",
        )
        self._desk.reporter.report(outcome_message(outcome.key, outcome.body), on_confirmed)
