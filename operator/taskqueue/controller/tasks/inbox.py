"""Reads the operator's inbox: reports of workers, heartbeats, and dead letters.

Contract:

* What a message claims counts only if its token proves it; then it is an event of its Task, and the
  machine decides what it is worth. What is about no tracked Task is acknowledged here, and counted.
* The end of a Task that is tracked no more is announced again, for the case that the leader that
  recorded it could not: its outcome would not be here any more if it had.
* What waits to be acknowledged has no content: however large messages are, those that wait for a
  status write or a confirm cost what their Tasks do.
* Each event of a batch counts as if it had come alone. The batch is acknowledged when all of them
  are dealt with; after a crash in between all of them come again, which changes nothing.
* What is not of the contract goes to the dead exchange with the reason in a header.
* What is neither proved by a token nor about a TaskQueue of this operator changes nothing: another
  operator that shares the virtual host gets it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import orjson

from taskqueue.amqp.channel import Delivery
from taskqueue.contract import batch, heartbeat, outcome, work
from taskqueue.contract.cloudevents import InexactEventError
from taskqueue.contract.completion import direct_completion
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt
from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    ERROR_HEADER,
    HEARTBEATS_EXCHANGE,
    ContractError,
    queue_of_key,
)
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, decode
from taskqueue.contract.work import AttemptClaim
from taskqueue.controller.completions.publisher import CompletionPublisher
from taskqueue.controller.metrics import HEARTBEATS_DROPPED, OUTCOMES_DROPPED
from taskqueue.controller.tasks import events
from taskqueue.controller.tasks.batch_events import events_of
from taskqueue.controller.tasks.batch_items import is_item
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure
from taskqueue.controller.tasks.machine import is_awaited
from taskqueue.controller.tasks.missing_handlers import UNKNOWN_HANDLER
from taskqueue.controller.tasks.runner import MessageSource, TaskRunner, acknowledge
from taskqueue.controller.tasks.tracked_task import log_fields
from taskqueue.limits import LONGEST_SNOOZE_SECONDS, RESULT_BYTES
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.result import ResultReference, result_key
from taskqueue.model.task import ProgressState
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

_TOO_LARGE = AttemptFailure(
    type="ResultTooLarge",
    message=f"the result has more than {RESULT_BYTES} bytes of JSON: store it elsewhere and "
    "return where",
    retryable=False,
)
#: Where the result is in an event.
_RESULT_PLACE = "data.result"
_NO_ERROR = EventError(type="Error", message="the worker gave no reason")
#: The worker still has the attempt.
_GOES_ON = (EventKind.STARTED, EventKind.CHECKPOINT)
_ENDS = (EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED)


class QueueListener(Protocol):
    """Serves the TaskQueues that messages are about: the engine, which is above this package."""

    def has_queue(self, key: QueueKey) -> bool:
        """Return whether this operator serves a TaskQueue, or may do so."""

    def uses_broker(self, key: QueueKey, broker: object) -> bool:
        """Return whether a TaskQueue uses this broker: what others say of it does not count."""

    def on_heartbeat(self, heartbeat: Heartbeat, *, proven: bool) -> None:
        """A worker lives, or says that it stops; ``proven``: it has a message of the operator's."""

    def on_direct_end(self, key: QueueKey, exchange: str) -> None:
        """A direct message has ended that was published to this exchange; "": not known."""


class Inbox:
    """Turns the messages of all brokers' inboxes into events of Tasks.

    Args:
        runner: holds the Tasks, and takes the events.
        dispatcher_of: the dispatcher of a queue, if any Task of it is tracked.
        completions: publishes the ends of direct messages.
        tokens: judge which report is genuine.
        clock: wall time in seconds.
        on_late: called with the outcome of a Task that is not tracked; acknowledges it, after it
            has announced the end again if the Task is there and finished.
        listener: serves the TaskQueues.
    """

    def __init__(
        self,
        *,
        runner: TaskRunner,
        dispatcher_of: Callable[[QueueKey], Dispatcher | None],
        completions: CompletionPublisher,
        tokens: TokenKeys,
        clock: Clock,
        on_late: Callable[[AttemptEvent, Delivery, MessageSource], None],
        listener: QueueListener,
    ) -> None:
        self._runner = runner
        self._dispatcher_of = dispatcher_of
        self._completions = completions
        self._tokens = tokens
        self._clock = clock
        self._on_late = on_late
        self._listener = listener

    def on_delivery(self, delivery: Delivery, source: MessageSource) -> None:
        """Read a message: a report, a dead letter, or a heartbeat."""
        if delivery.exchange == HEARTBEATS_EXCHANGE:
            acknowledge(delivery)
            try:
                self._on_heartbeat_message(delivery, source)
            except Exception as error:
                log.error("heartbeat.failed", exc_info=error, key=delivery.routing_key)
            return
        try:
            if delivery.exchange == DEAD_EXCHANGE:
                self._on_dead_letter(delivery, source)
            elif _is_batch(delivery):
                for event in events_of(delivery):
                    self._on_event_of_batch(event, source)
            else:
                self._on_event(delivery, source)
        except ContractError as error:
            self._on_invalid(delivery, source, error)

    def _on_event_of_batch(self, delivery: Delivery, source: MessageSource) -> None:
        """Read one of several events: whatever is wrong with it, the others count."""
        try:
            try:
                self._on_event(delivery, source)
            except ContractError as error:
                self._on_invalid(delivery, source, error)
        except Exception as error:  # the last resort, as for a message
            log.error("message.intake_failed", exc_info=error, exchange=delivery.exchange)
            source.dead_letter_delivery(delivery, f"the operator failed on it: {error!r}")

    def _on_event(self, delivery: Delivery, source: MessageSource) -> None:
        if delivery.problem:
            raise ContractError(delivery.problem)
        report = decode(delivery.body)
        if report.is_direct:
            self._on_direct_end(delivery, report, source)
        else:
            self._on_report(delivery, report, source)

    def _on_report(self, delivery: Delivery, report: AttemptEvent, source: MessageSource) -> None:
        if not self._is_genuine(report):
            if self._drop_foreign(delivery):
                return
            log.warning(
                "outcome.forged", namespace=report.namespace, task=report.task, uid=report.uid
            )
            _drop("forged", delivery)
            return
        if report.kind not in _GOES_ON:
            # Whatever it says: no worker has this attempt any more.
            self._end_key_hold((report.namespace, report.queue), report.token)
        if self._runner.find(report.uid) is not None:
            self._runner.send(report.uid, self._event(delivery, report, source))
        elif report.kind is EventKind.STARTED:
            self._runner.stop_stray(report.uid, report.token, source)
            _drop("unknown", delivery)
        elif report.kind in _ENDS and not is_item(report.uid):
            OUTCOMES_DROPPED.labels("unknown").inc()
            self._on_late(
                replace(report, result=None, result_ref=None), delivery.without_content(), source
            )
        else:
            _drop("unknown", delivery)

    def _event(
        self, delivery: Delivery, report: AttemptEvent, source: MessageSource
    ) -> events.AttemptReport:
        """Return a worker's report as the machine reads it."""
        about = events.ReportedAttempt(
            attempt=report.attempt,
            epoch=report.epoch,
            token=report.token,
            receipt=delivery.without_content(),
            source=source,
        )
        match report.kind:
            case EventKind.STARTED:
                return events.AttemptStarted(about, report.worker)
            case EventKind.CHECKPOINT:
                return events.CheckpointSaved(about, orjson.dumps(report.checkpoint))
            case EventKind.RELEASED:
                return events.AttemptReleased(about, max(report.deliveries, 0), report.worker)
            case EventKind.CANCELLED:
                return events.AttemptStopped(about)
        end = AttemptEnd(
            attempt=report.attempt,
            epoch=report.epoch,
            now=self._clock(),
            seconds=report.seconds or 0.0,
            worker=report.worker,
            output=report.output,
        )
        if report.kind is EventKind.SNOOZED:
            seconds = min(report.seconds or 0.0, LONGEST_SNOOZE_SECONDS)
            return events.AttemptSnoozed(about, end, seconds)
        if report.kind is EventKind.SUCCEEDED:
            if len(delivery.body) > RESULT_BYTES and _is_too_large(report.result):
                return events.AttemptFailed(about, end, _TOO_LARGE)
            found = self._reference(report, end.now)
            return events.AttemptSucceeded(about, end, report.result, found)
        said = report.error or _NO_ERROR
        if said.reserved and said.type == UNKNOWN_HANDLER:
            return events.HandlerUnknown(about, said.message)
        failure = AttemptFailure(
            type=said.type,
            message=said.message,
            retryable=said.retryable,
            reserved=said.reserved,
            retry_after_seconds=report.retry_after_seconds,
        )
        return events.AttemptFailed(about, end, failure)

    def _reference(self, report: AttemptEvent, now: float) -> ResultReference | None:
        """Return where a stored result is: that follows from its Task, not from the report."""
        said, tracked = report.result_ref, self._runner.tasks[report.uid]
        if said is None:
            return None
        namespace, queue = tracked.queue_key
        dispatcher = self._dispatcher_of(tracked.queue_key)
        config = None if dispatcher is None else dispatcher.config
        kept = None if config is None else config.results.retention_seconds
        return ResultReference(
            key=result_key(
                namespace=namespace,
                queue=queue,
                uid=report.uid,
                attempt=report.attempt,
                epoch=report.epoch,
            ),
            size_bytes=said.size_bytes,
            content_type=said.content_type,
            sha256=said.sha256,
            expiration_time=None if kept is None else now + kept,
        )

    def _on_heartbeat_message(self, delivery: Delivery, source: MessageSource) -> None:
        """Read what a worker says of itself and of the attempts it runs."""
        try:
            said = heartbeat.decode(delivery.body)
        except ContractError as error:
            log.warning("heartbeat.invalid", error=str(error))
            HEARTBEATS_DROPPED.labels("invalid").inc()
            return
        if delivery.routing_key != said.routing_key:
            log.warning("heartbeat.forged", claimed=said.routing_key, key=delivery.routing_key)
            HEARTBEATS_DROPPED.labels("forged").inc()
            return
        key = (said.namespace, said.queue)
        if not self._listener.uses_broker(key, source.broker):
            HEARTBEATS_DROPPED.labels("foreign").inc()
            return
        proven = [self._on_running(key, said.pod, attempt, source) for attempt in said.running]
        dispatcher = self._dispatcher_of(key)
        if dispatcher is not None and not said.is_running_cut:
            dispatcher.on_running_reported(said.pod, {one.uid for one in said.running})
        self._listener.on_heartbeat(said, proven=any(proven))

    def _on_running(
        self, key: QueueKey, pod: str, attempt: RunningAttempt, source: MessageSource
    ) -> bool:
        """Handle what a worker says of an attempt; return whether it proves to be a worker.

        Only the operator, and whoever has got the attempt's message from it, know its token.
        """
        tracked = self._runner.tasks.get(attempt.uid)
        if tracked is not None and tracked.queue_key != key:
            HEARTBEATS_DROPPED.labels("foreign").inc()
            return False
        genuine = self._is_named_genuinely(attempt)
        if genuine is False:
            HEARTBEATS_DROPPED.labels("forged").inc()
            return False
        if genuine and tracked is None:
            tracked = self._runner.find(attempt.uid)
        dispatcher = self._dispatcher_of(key)
        if dispatcher is not None and genuine:
            dispatcher.keys.prolong_hold(attempt.token)
        if tracked is None or not self._runner.is_present(tracked, attempt):
            # Nobody waits for it (any more): its Task was deleted, ended or recalled. If that is
            # yet to be written, the command follows by itself.
            if tracked is None or not tracked.owed:
                self._runner.stop_stray(attempt.uid, attempt.token, source)
            return bool(genuine)
        said_so_far = attempt.percent is not None or attempt.message
        progress = ProgressState(attempt.percent, attempt.message) if said_so_far else None
        self._runner.send(attempt.uid, events.HeartbeatSeen(pod, progress))
        return True

    def _is_named_genuinely(self, attempt: RunningAttempt) -> bool | None:
        """Return whether the token belongs to the attempt; None: an older worker, not known."""
        if attempt.attempt is None or attempt.epoch is None:
            return None
        return self._tokens.verify(attempt.token, attempt.uid, attempt.attempt, attempt.epoch)

    def _on_direct_end(
        self, delivery: Delivery, report: AttemptEvent, source: MessageSource
    ) -> None:
        """Pass the end of a direct message on to whoever listens."""
        if self._drop_foreign(delivery):
            return
        key = (report.namespace, report.queue)
        if delivery.routing_key == report.routing_key and self._listener.uses_broker(
            key, source.broker
        ):
            self._listener.on_direct_end(key, report.exchange)
        receipt = delivery.without_content()
        self._completions.publish_event(
            direct_completion(report, arrived_with=delivery.routing_key, now=self._clock()),
            reported=True,
            publisher=source.publisher,
            on_published=lambda: acknowledge(receipt),
        )

    def _on_dead_letter(self, delivery: Delivery, source: MessageSource) -> None:
        if delivery.problem:
            _drop("invalid", delivery)  # the dead queue has it, too
            return
        headers = delivery.properties.headers or {}
        claim = work.claimed_attempt(delivery.properties)
        if claim is None:
            acknowledge(delivery)  # a direct message; its copy in the dead queue is for people
            return
        if not self._is_genuine(claim):
            if not self._drop_foreign(delivery):
                _drop("forged", delivery)
            return
        tracked = self._runner.find(claim.uid)
        if tracked is None:
            _drop("unknown", delivery)
            return
        self._end_key_hold(tracked.queue_key, claim.token)
        if not is_awaited(tracked, claim.attempt, claim.epoch):
            _drop("stale", delivery)
            return
        why = str(headers.get(ERROR_HEADER) or headers.get("x-last-death-reason") or "unknown")
        log.warning("outcome.dead_letter", **log_fields(tracked.task, reason=why))
        if why == "delivery_limit":
            failure = AttemptFailure(
                type="WorkerLost",
                message="the message reached its delivery limit: every worker that had it was lost",
            )
        else:
            failure = AttemptFailure(
                type="DeadLettered",
                message=f"the message was dead-lettered ({why}): check for a consumer of the queue "
                "that rejects messages, or a worker of another version",
            )
        self._fail(claim, failure, delivery, source)

    def _on_invalid(self, delivery: Delivery, source: MessageSource, error: ContractError) -> None:
        claim = outcome.claimed_attempt(delivery.body)
        tracked = None if claim is None else self._runner.tasks.get(claim.uid)
        if (
            claim is None
            or tracked is None
            or not self._is_genuine(claim)
            or not is_awaited(tracked, claim.attempt, claim.epoch)
        ):
            if self._drop_foreign(delivery):
                return
            log.warning("outcome.invalid", error=str(error))
            OUTCOMES_DROPPED.labels("invalid").inc()
            source.dead_letter_delivery(delivery, str(error))
            return
        log.warning("outcome.invalid", error=str(error))
        # Its worker has done with it: without an outcome the Task would wait without end.
        self._end_key_hold(tracked.queue_key, claim.token)
        self._fail(claim, _invalid(error), delivery, source)

    def _fail(
        self,
        claim: AttemptClaim,
        failure: AttemptFailure,
        delivery: Delivery,
        source: MessageSource,
    ) -> None:
        about = events.ReportedAttempt(
            attempt=claim.attempt,
            epoch=claim.epoch,
            token=claim.token,
            receipt=delivery.without_content(),
            source=source,
        )
        end = AttemptEnd(attempt=claim.attempt, epoch=claim.epoch, now=self._clock())
        self._runner.send(claim.uid, events.AttemptFailed(about, end, failure))

    def _drop_foreign(self, delivery: Delivery) -> bool:
        """Acknowledge a message about a TaskQueue that is not served here; return whether it is."""
        if self._listener.has_queue(queue_of_key(delivery.routing_key)):
            return False
        _drop("foreign", delivery)
        return True

    def _end_key_hold(self, key: QueueKey, token: str) -> None:
        dispatcher = self._dispatcher_of(key)
        if dispatcher is not None and token in dispatcher.keys.holds:
            dispatcher.keys.end_hold(token)

    def _is_genuine(self, claim: AttemptClaim | AttemptEvent) -> bool:
        return self._tokens.verify(claim.token, claim.uid, claim.attempt, claim.epoch)


def _invalid(error: ContractError) -> AttemptFailure:
    # What is too deep has no place; in an event it can only be the result.
    if isinstance(error, InexactEventError) and (error.place or _RESULT_PLACE).startswith(
        _RESULT_PLACE
    ):
        place = (error.place or _RESULT_PLACE).removeprefix("data.")
        message = f"{place}: {error.problem}"
        return AttemptFailure(type="InvalidResult", message=message, retryable=False)
    return AttemptFailure(type="InvalidOutcome", message=str(error))


def _is_batch(delivery: Delivery) -> bool:
    return (delivery.properties.content_type or "").startswith(batch.CONTENT_TYPE)


def _is_too_large(result: dict[str, Any] | None) -> bool:
    return result is not None and len(orjson.dumps(result)) > RESULT_BYTES


def _drop(reason: str, delivery: Delivery) -> None:
    OUTCOMES_DROPPED.labels(reason).inc()
    acknowledge(delivery)
