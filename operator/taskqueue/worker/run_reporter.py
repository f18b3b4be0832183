"""Executes the effects of runs that the broker or the log sees.

A run's report is an event to the operator, and a dead letter where a direct message has failed.
An outcome is published until the broker has confirmed it. The end of a Task's attempt is kept for a
while besides, so that a repeated message is answered and not run; a released attempt has not ended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.command import BATCHES, RESERVED_TYPES, WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.outgoing import dead_letter, outcome_message
from taskqueue.contract.work import WorkMessage
from taskqueue.logs import EventLog
from taskqueue.worker import run_effects as effects
from taskqueue.worker.attempt_events import (
    direct_event,
    event_of,
    kind_of,
    stopped_event,
    timed_out,
    worker_lost,
)
from taskqueue.worker.checkpoint_publisher import CheckpointPublisher
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.outcome_cache import OutcomeCache
from taskqueue.worker.outcome_outbox import OnConfirmed, OutcomeOutbox
from taskqueue.worker.run_events import DeadLetterConfirmed, Event, OutcomeConfirmed
from taskqueue.worker.run_state import Released, Report, Stopped, TimedOut, WorkerLost
from taskqueue.worker.runs import AttemptRun, DirectRun, TaskRun
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")

_OUTCOME_CONFIRMED = OutcomeConfirmed()
_DEAD_LETTER_CONFIRMED = DeadLetterConfirmed()


class RunReporter:
    """Publishes the starts and ends of runs, settles their deliveries, and logs.

    Args:
        settings: of the worker.
        outbox: publishes until confirmed.
        on_confirmed: called with the id of a run and the event when what it reports is confirmed.

    Attributes:
        outbox: see above.
        cache: outcomes of tokens that ended lately.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        outbox: OutcomeOutbox,
        *,
        on_confirmed: Callable[[int, Event], None],
    ) -> None:
        self._namespace = settings.namespace
        self._queue = settings.queue
        self._installation = settings.installation
        self._worker = settings.pod
        self._on_confirmed = on_confirmed
        self._checkpoints = CheckpointPublisher(outbox, worker=settings.pod)
        #: Whether the operator reads the prefix of reserved types.
        self._prefixed = False
        self.outbox = outbox
        self.cache = OutcomeCache()

    def on_announcement(self, announcement: WorkerCommand) -> None:
        """Write events as the operator that has connected last can read them.

        Events go to the operator of one's own installation: what another one reads does not matter.
        """
        if announcement.installation == self._installation:
            self._write_for(announcement.understands)

    def on_older_operator(self) -> None:
        """Write events as the first operators read them: one of these has published a message.

        It announces nothing itself, so what a newer one has announced before would still count.
        """
        self._write_for(frozenset())

    def _write_for(self, understands: frozenset[str]) -> None:
        self._prefixed = RESERVED_TYPES in understands
        self.outbox.batches = BATCHES in understands

    def report_started(self, _: int, run: AttemptRun, __: effects.ReportStarted) -> None:
        """Publish task.started once; no status records direct messages."""
        if isinstance(run, TaskRun):
            outcome = event_of(run.message, EventKind.STARTED, worker=self._worker)
            self.outbox.publish_once(outcome_message(outcome.key, outcome.body))

    def publish_outcome(
        self, run_id: int, run: TaskRun | DirectRun, effect: effects.PublishOutcome
    ) -> None:
        """Publish a report until confirmed, and keep it if it ends an attempt."""
        report, worker = effect.report, self._worker
        if isinstance(run, DirectRun):
            outcome = direct_event(
                run.attempt,
                _result_of(report),
                namespace=self._namespace,
                worker=worker,
                delivery=run.delivery,
                prefixed=self._prefixed,
            )
        elif isinstance(report, Stopped):
            outcome = stopped_event(
                run.message, report.command, worker=worker, seconds=report.seconds
            )
        elif isinstance(report, Released):
            outcome = event_of(
                run.message, EventKind.RELEASED, worker=worker, deliveries=run.deliveries
            )
        else:
            result = _result_of(report)
            outcome = event_of(
                run.message,
                kind_of(result),
                worker=worker,
                result=result,
                prefixed=self._prefixed,
            )
        if run.token:
            self._checkpoints.flush(run.token)
        if run.token and not isinstance(report, Released):
            self.cache.add(run.token, outcome)
        self.outbox.publish(
            outcome_message(outcome.key, outcome.body),
            partial(self._on_confirmed, run_id, _OUTCOME_CONFIRMED),
        )

    def save_checkpoint(self, message: WorkMessage, checkpoint: bytes) -> None:
        """Publish what the handler of an attempt has saved."""
        self._checkpoints.publish(message, checkpoint)

    def dead_letter(self, run_id: int, run: DirectRun, effect: effects.DeadLetter) -> None:
        """Publish the message as a dead letter until confirmed."""
        error = _result_of(effect.report).error
        reason = "" if error is None else f"{error.type}: {error.message}"
        self.publish_dead_letter(
            run.delivery, reason, partial(self._on_confirmed, run_id, _DEAD_LETTER_CONFIRMED)
        )

    def publish_dead_letter(
        self, delivery: Delivery, reason: str, on_confirmed: OnConfirmed
    ) -> None:
        """Publish a delivery as a dead letter until confirmed."""
        message = dead_letter(
            delivery.properties,
            delivery.body,
            exchange=delivery.exchange,
            namespace=self._namespace,
            queue=self._queue,
            reason=reason,
        )
        self.outbox.publish(message, on_confirmed)

    def acknowledge(self, _: int, __: AttemptRun, effect: effects.Acknowledge) -> None:
        """Acknowledge deliveries."""
        for acknowledger, tag in effect.receipts:
            acknowledger.confirm(tag)

    def requeue(self, _: int, __: AttemptRun, effect: effects.Requeue) -> None:
        """Return deliveries to the queue."""
        for acknowledger, tag in effect.receipts:
            acknowledger.requeue(tag)

    def reject(self, _: int, __: AttemptRun, effect: effects.Reject) -> None:
        """Return deliveries to the queue as failed."""
        for acknowledger, tag in effect.receipts:
            acknowledger.reject(tag)

    def log_end(self, _: int, run: AttemptRun, effect: effects.LogEnd) -> None:
        """Log a failure that is not an execution's own."""
        self.log_result(run, effect.report)

    def log_result(self, run: AttemptRun, report: Report) -> None:
        """Log a success, a failure or a snooze."""
        result = _result_of(report)
        if result.snooze_seconds is not None:
            log.info("task.snoozed", seconds=result.snooze_seconds, **run.log_fields)
            return
        error = result.error
        if error is not None:
            log.warning(
                "task.failed",
                exc_info=result.exception,
                type=error.type,
                message=error.message,
                retryable=error.retryable,
                seconds=round(result.seconds, 3),
                **run.log_fields,
            )
        elif log.verbose:
            log.debug("task.succeeded", seconds=result.seconds, **run.log_fields)

    def log(self, _: int, run: AttemptRun, effect: effects.Log) -> None:
        """Log an event."""
        getattr(log, effect.level)(effect.event, **effect.fields, **run.log_fields)


def _result_of(report: Report) -> AttemptResult:
    """Return the result that a report of a success or failure stands for."""
    if isinstance(report, AttemptResult):
        return report
    if isinstance(report, TimedOut):
        return timed_out(report.timeout_seconds)
    if isinstance(report, WorkerLost):
        return worker_lost(report.deliveries)
    raise TypeError(f"{report!r} is neither a success nor a failure")
