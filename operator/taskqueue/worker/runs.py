"""One attempt in a worker: what to run, its unacknowledged deliveries, and how its end is reported.

The end of a Task's attempt is an event. The end of a direct message is an event and what happens to
the message. Either way the delivery is acknowledged only when the broker has confirmed the report.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.outgoing import OutgoingMessage, dead_letter, outcome_message
from taskqueue.contract.work import WorkMessage
from taskqueue.model.command import CommandKind
from taskqueue.worker.acknowledger import Acknowledger
from taskqueue.worker.attempt_events import direct_event, event_of, kind_of, stopped_event
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.outcome_cache import CachedOutcome, OutcomeCache
from taskqueue.worker.outcome_outbox import OutcomeOutbox


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """What runs need to report their end.

    Attributes:
        namespace: of the worker's TaskQueue.
        queue: name of the worker's TaskQueue.
        worker: name of this worker in events.
        direct_max_deliveries: attempts of a direct message.
        outbox: publishes until confirmed.
        outcome_cache: outcomes of tokens that ended lately.
        by_token: runs whose token must not run a second time: queued, running, or ended and not
            yet confirmed.
    """

    namespace: str
    queue: str
    worker: str
    direct_max_deliveries: int
    outbox: OutcomeOutbox
    outcome_cache: OutcomeCache = field(default_factory=OutcomeCache)
    by_token: dict[str, TaskRun] = field(default_factory=dict)

    def dead_letter(self, delivery: Delivery, reason: str) -> OutgoingMessage:
        """Return the delivery as a dead letter, to be published."""
        return dead_letter(
            delivery.properties,
            delivery.body,
            namespace=self.namespace,
            queue=self.queue,
            reason=reason,
        )


class Run(ABC):
    """An attempt that is queued for a slot, running, or ended and not yet confirmed.

    Attributes:
        attempt: what to run.
        delivery: the first delivery of the attempt; others of the same token may be added.
        deliveries: how often the broker had delivered it before.
        execution: None until it has a slot.
        started_at: on the loop's clock; 0 before it has a slot.
        start_reported: it has run long enough for its start to be published.
        end_decided: its end is decided; a later result does not count.
        on_execution_end: what waits for the end of the execution of a run whose end is decided.
        disowned: the broker may deliver it to another worker: this one reports nothing about it.
        next_run: the same attempt, delivered again while the execution of this run is ending.
    """

    __slots__ = (
        "_services",
        "_unacknowledged",
        "attempt",
        "deliveries",
        "delivery",
        "disowned",
        "end_decided",
        "execution",
        "next_run",
        "on_execution_end",
        "start_reported",
        "started_at",
    )

    def __init__(
        self, services: RunServices, attempt: AttemptRequest, delivery: Delivery, deliveries: int
    ) -> None:
        self._services = services
        self.attempt = attempt
        self.delivery = delivery
        self.deliveries = deliveries
        self.execution: Execution | None = None
        self.started_at = 0.0
        self.start_reported = False
        self.end_decided = False
        self.disowned = False
        self.on_execution_end: Callable[[], None] | None = None
        self.next_run: TaskRun | None = None
        self._unacknowledged: list[tuple[Acknowledger, int]] = []

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
        """An attempt delivered this many times before is not run."""

    @abstractmethod
    def report_started(self) -> None:
        """Publish that it is running; called again after a reconnect."""

    @abstractmethod
    def report_result(self, result: AttemptResult) -> None:
        """Publish its result."""

    @abstractmethod
    def report_released(self) -> None:
        """Release it without a result."""

    @abstractmethod
    def free_token(self) -> None:
        """Let a new delivery of the attempt run: the deliveries of this run are void."""

    def add_delivery(self, acknowledger: Acknowledger, delivery: Delivery) -> None:
        """Acknowledge or requeue this delivery together with the run."""
        self._unacknowledged.append((acknowledger, delivery.delivery_tag))

    def acknowledge(self) -> None:
        """Acknowledge its deliveries: the broker has confirmed the report."""
        for acknowledger, tag in self._unacknowledged:
            acknowledger.confirm(tag)
        self._unacknowledged.clear()

    def requeue(self) -> None:
        """Return its deliveries to the queue, if their channel is open; the broker counts it."""
        for acknowledger, tag in self._unacknowledged:
            acknowledger.requeue(tag)
        self._unacknowledged.clear()

    @property
    def log_fields(self) -> dict[str, Any]:
        """Fields of log lines about it."""
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
        services: RunServices,
        message: WorkMessage,
        attempt: AttemptRequest,
        delivery: Delivery,
        deliveries: int,
    ) -> None:
        super().__init__(services, attempt, delivery, deliveries)
        self._message = message
        services.by_token[message.token] = self

    @property
    def running_attempt(self) -> RunningAttempt:
        """The attempt as a heartbeat reports it."""
        progress = None if self.execution is None else self.execution.progress
        if progress is None:
            return RunningAttempt(self.attempt.uid, self.token)
        percent = None if progress.percent is None else int(progress.percent)
        return RunningAttempt(self.attempt.uid, self.token, percent, progress.message)

    @property
    def max_deliveries(self) -> int:
        """The Task's own."""
        return self._message.max_deliveries

    def report_started(self) -> None:
        """Publish task.started once: losing it delays the phase, nothing else."""
        outcome = event_of(self._message, EventKind.STARTED, worker=self._services.worker)
        self._services.outbox.publish_once(outcome_message(outcome.key, outcome.body))

    def report_result(self, result: AttemptResult) -> None:
        """Publish the outcome until confirmed, and cache it."""
        self._report(
            event_of(self._message, kind_of(result), worker=self._services.worker, result=result)
        )

    def report_stopped(self, command: CommandKind, seconds: float) -> None:
        """Publish the answer to a command until confirmed, and cache it."""
        self._report(
            stopped_event(self._message, command, worker=self._services.worker, seconds=seconds)
        )

    def report_released(self) -> None:
        """Publish task.released until confirmed: the operator publishes the attempt again.

        The token is free at once. The operator may be quicker than our confirm, and a delivery
        added to this run would be acknowledged without ever having run.
        """
        self.free_token()
        outcome = event_of(self._message, EventKind.RELEASED, worker=self._services.worker)
        self._services.outbox.publish(outcome_message(outcome.key, outcome.body), self.acknowledge)

    def free_token(self) -> None:
        """Let a new delivery of the token run."""
        if self._services.by_token.get(self._message.token) is self:
            del self._services.by_token[self._message.token]

    def _report(self, outcome: CachedOutcome) -> None:
        self._services.outcome_cache.add(self._message.token, outcome)
        self._services.outbox.publish(
            outcome_message(outcome.key, outcome.body), self._on_confirmed
        )

    def _on_confirmed(self) -> None:
        self.free_token()
        self.acknowledge()


class DirectRun(Run):
    """A direct message: success acknowledges it, failure rejects it, the last one dead-letters it.

    Its end is published before the message leaves the queue. A failure that will be retried is not
    an end.
    """

    __slots__ = ()

    @property
    def max_deliveries(self) -> int:
        """The queue's."""
        return self._services.direct_max_deliveries

    def report_started(self) -> None:
        """Do nothing: no status records direct messages."""

    def report_result(self, result: AttemptResult) -> None:
        """Acknowledge, reject for another try, or dead-letter."""
        if result.error is None:
            self._report(result, self.acknowledge)
        elif result.error.retryable and self.deliveries + 1 < self.max_deliveries:
            for acknowledger, tag in self._unacknowledged:
                acknowledger.reject(tag)
            self._unacknowledged.clear()
        else:
            reason = f"{result.error.type}: {result.error.message}"
            message = self._services.dead_letter(self.delivery, reason)
            outbox = self._services.outbox
            self._report(result, lambda: outbox.publish(message, self.acknowledge))

    def report_released(self) -> None:
        """Return it to the queue; the broker counts that as a delivery, there is no other way."""
        self.requeue()

    def free_token(self) -> None:
        """Do nothing: direct messages have no token."""

    def _report(self, result: AttemptResult, on_confirmed: Callable[[], None]) -> None:
        outcome = direct_event(
            self.attempt,
            result,
            namespace=self._services.namespace,
            worker=self._services.worker,
            message_id=self.delivery.properties.message_id or "",
        )
        self._services.outbox.publish(outcome_message(outcome.key, outcome.body), on_confirmed)
