"""Handles the messages in the operator's inbox: attempt events, dead letters and heartbeats.

Contract:

* A message counts only if its token proves it and it is not stale. `TaskTransitions` then applies
  and acknowledges it. What changes nothing is acknowledged here, and counted.
* The completion event of a Task that is no longer held is published again. A leader that had
  published it would have acknowledged the outcome.
* A worker that begins an attempt nobody waits for gets a command to stop it.
* A message that violates the contract goes to the dead exchange, with the reason in a header.
"""

from __future__ import annotations

from collections.abc import Callable

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.publisher import Settled
from taskqueue.contract import heartbeat, outcome, work
from taskqueue.contract.command import CommandKind, WorkerCommand, order_message
from taskqueue.contract.completion import direct_event
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    ERROR_HEADER,
    HEARTBEATS_EXCHANGE,
    ContractError,
)
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, decode
from taskqueue.contract.work import AttemptClaim
from taskqueue.controller.completions.publisher import CompletionPublisher
from taskqueue.controller.metrics import OUTCOMES_DROPPED
from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure, Verdict
from taskqueue.controller.tasks.tracked_task import (
    OutcomeSource,
    TaskStage,
    TrackedTask,
    log_fields,
)
from taskqueue.controller.tasks.transitions import UNKNOWN_HANDLER, TaskTransitions, ack
from taskqueue.limits import RESULT_BYTES
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import ProgressState
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: What an event may add to its result, in bytes.
_ENVELOPE_BYTES = 16 * 1024

_TOO_LARGE = AttemptFailure(
    type="ResultTooLarge",
    message=f"the result has more than {RESULT_BYTES} bytes of JSON: store it elsewhere and "
    "return where",
    retryable=False,
)
_NO_ERROR = EventError(type="Error", message="the worker gave no reason")
_ENDS = (EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED)


class Inbox:
    """Handles deliveries from the operator's inboxes, by the module's contract.

    Args:
        entries: the unfinished Tasks by uid.
        dispatcher_of: the dispatcher of a queue, if any Task of it is held.
        transitions: applies what counts.
        completions: publishes the completion events of direct messages.
        tokens: verify which attempt an outcome belongs to.
        clock: wall time in seconds.
        on_late: called with the outcome of a Task that is not held. It acknowledges the outcome,
            after it has published the completion event again if the Task exists and is finished.
        on_heartbeat: called with each valid heartbeat.
    """

    def __init__(
        self,
        *,
        entries: dict[str, TrackedTask],
        dispatcher_of: Callable[[QueueKey], Dispatcher | None],
        transitions: TaskTransitions,
        completions: CompletionPublisher,
        tokens: TokenKeys,
        clock: Clock,
        on_late: Callable[[AttemptEvent, Delivery, OutcomeSource], None],
        on_heartbeat: Callable[[Heartbeat], None],
    ) -> None:
        self._entries = entries
        self._dispatcher_of = dispatcher_of
        self._transitions = transitions
        self._completions = completions
        self._tokens = tokens
        self._clock = clock
        self._on_late = on_late
        self._on_heartbeat = on_heartbeat

    def on_delivery(self, delivery: Delivery, source: OutcomeSource) -> None:
        """Handle a message: an event, a dead letter, or a heartbeat."""
        if delivery.exchange == HEARTBEATS_EXCHANGE:
            self._on_worker_heartbeat(delivery, source)
            return
        try:
            if delivery.exchange == DEAD_EXCHANGE:
                self._on_dead_letter(delivery)
                return
            event = decode(delivery.body)
            if event.is_direct:
                self._on_direct(delivery, event, source)
            else:
                self._on_event(delivery, event, source)
        except ContractError as error:
            self._on_invalid(delivery, source, error)

    def _on_event(self, delivery: Delivery, event: AttemptEvent, source: OutcomeSource) -> None:
        claim = AttemptClaim(event.uid, event.token, event.attempt, event.epoch)
        if not self._is_genuine(claim):
            log.warning("outcome.forged", namespace=event.namespace, task=event.task, uid=event.uid)
            self._drop("forged", delivery)
            return
        if event.kind is not EventKind.STARTED:
            # Whatever the event: no worker has this attempt any more.
            self._end_key_hold((event.namespace, event.queue), event.token)
        entry = self._entries.get(event.uid)
        if entry is None or not self._is_awaited(entry, claim):
            self._on_late_event(delivery, event, entry, source)
            return
        entry.source = source
        transitions = self._transitions
        ended = AttemptEnd(
            attempt=event.attempt,
            epoch=event.epoch,
            now=self._clock(),
            seconds=event.seconds or 0.0,
            worker=event.worker,
        )
        match event.kind:
            case EventKind.STARTED:
                ack(delivery)
                transitions.on_started(entry, attempt=event.attempt, worker=event.worker)
            case EventKind.RELEASED:
                transitions.on_released(entry, delivery)
            case EventKind.CANCELLED:
                transitions.on_recalled(entry, delivery)
            case EventKind.SUCCEEDED if len(delivery.body) > RESULT_BYTES + _ENVELOPE_BYTES:
                transitions.on_failed(entry, ended, _TOO_LARGE, delivery)
            case EventKind.SUCCEEDED:
                transitions.on_succeeded(entry, ended, event.result, delivery)
            case EventKind.FAILED:
                error = event.error or _NO_ERROR
                if error.type == UNKNOWN_HANDLER:
                    transitions.on_unknown_handler(entry, error.message, delivery)
                    return
                failure = AttemptFailure(
                    type=error.type,
                    message=error.message,
                    retryable=error.retryable,
                    retry_after_seconds=event.retry_after_seconds,
                )
                transitions.on_failed(entry, ended, failure, delivery)

    def _on_worker_heartbeat(self, delivery: Delivery, source: OutcomeSource) -> None:
        """Handle what a worker reports of itself and of the attempts it runs."""
        ack(delivery)
        try:
            report = heartbeat.decode(delivery.body)
        except ContractError as error:
            log.warning("heartbeat.invalid", error=str(error))
            return
        if delivery.routing_key != report.routing_key:
            log.warning("heartbeat.forged", claimed=report.routing_key, key=delivery.routing_key)
            return
        for attempt in report.running:
            entry = self._entries.get(attempt.uid)
            dispatcher = None if entry is None else self._dispatcher_of(entry.queue_key)
            if entry is None or dispatcher is None or dispatcher.token(entry) != attempt.token:
                # Nobody waits for it (any more): its Task was deleted, ended or recalled. If that
                # is yet to be written, the command follows by itself.
                if entry is None or not entry.after_write:
                    self._send_cancel(attempt.token, attempt.uid, source)
            else:
                # Its start may have been reported to a leader that ended before the write.
                self._transitions.on_running(entry, worker=report.pod)
                if attempt.percent is not None or attempt.message:
                    self._transitions.on_progress(
                        entry, ProgressState(attempt.percent, attempt.message)
                    )
        self._on_heartbeat(report)

    def _send_cancel(self, token: str, uid: str, source: OutcomeSource) -> None:
        if source.publisher is not None:
            message = order_message(WorkerCommand(CommandKind.CANCEL, token=token, uid=uid))
            source.publisher.publish(
                message.exchange,
                message.key,
                message.body,
                message.properties(),
                _ignore_settled,
            )

    def _on_late_event(
        self,
        delivery: Delivery,
        event: AttemptEvent,
        entry: TrackedTask | None,
        source: OutcomeSource,
    ) -> None:
        """Handle an event about an attempt nobody waits for."""
        if event.kind is EventKind.STARTED:
            self._send_cancel(event.token, event.uid, source)
            self._drop("unknown" if entry is None else "stale", delivery)
        elif entry is None:
            if event.kind in _ENDS:
                OUTCOMES_DROPPED.labels("unknown").inc()
                self._on_late(event, delivery, source)
            else:
                self._drop("unknown", delivery)
        elif entry.outcomes:
            # Perhaps the very outcome that awaits its write, delivered again by the broker.
            OUTCOMES_DROPPED.labels("stale").inc()
            entry.outcomes.append(delivery)
        else:
            self._drop("stale", delivery)

    def _on_direct(self, delivery: Delivery, event: AttemptEvent, source: OutcomeSource) -> None:
        """Publish the completion event of a direct message."""
        self._completions.publish_event(
            direct_event(event, arrived_with=delivery.routing_key, now=self._clock()),
            reported=True,
            publisher=source.publisher,
            on_published=lambda: ack(delivery),
        )

    def _on_dead_letter(self, delivery: Delivery) -> None:
        headers = delivery.properties.headers or {}
        claim = work.claimed_attempt(delivery.properties)
        if claim is None:
            ack(delivery)  # a direct message; its copy in the dead queue is for people
            return
        entry = self._entries.get(claim.uid)
        if not self._is_genuine(claim):
            self._drop("forged", delivery)
            return
        if entry is not None:
            self._end_key_hold(entry.queue_key, claim.token)
        if entry is None or not self._is_awaited(entry, claim):
            self._drop("unknown" if entry is None else "stale", delivery)
            return
        why = str(headers.get(ERROR_HEADER) or headers.get("x-last-death-reason") or "unknown")
        log.warning("outcome.dead_letter", **log_fields(entry.task, reason=why))
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
        self._transitions.on_failed(entry, self._ended_now(claim), failure, delivery)

    def _on_invalid(self, delivery: Delivery, source: OutcomeSource, error: ContractError) -> None:
        log.warning("outcome.invalid", error=str(error))
        claim = outcome.claimed_attempt(delivery.body)
        entry = None if claim is None else self._entries.get(claim.uid)
        if (
            claim is None
            or entry is None
            or not self._is_genuine(claim)
            or not self._is_awaited(entry, claim)
        ):
            OUTCOMES_DROPPED.labels("invalid").inc()
            source.dead_letter_delivery(delivery, str(error))
            return
        # Its worker is done with it: without an outcome the Task would never end.
        self._end_key_hold(entry.queue_key, claim.token)
        failure = AttemptFailure(type="InvalidOutcome", message=str(error))
        self._transitions.on_failed(entry, self._ended_now(claim), failure, delivery)

    def _end_key_hold(self, key: QueueKey, token: str) -> None:
        dispatcher = self._dispatcher_of(key)
        if dispatcher is not None:
            dispatcher.end_key_hold(token)

    def _ended_now(self, claim: AttemptClaim) -> AttemptEnd:
        return AttemptEnd(attempt=claim.attempt, epoch=claim.epoch, now=self._clock())

    def _is_genuine(self, claim: AttemptClaim) -> bool:
        return self._tokens.verify(claim.token, claim.uid, claim.attempt, claim.epoch)

    @staticmethod
    def _is_awaited(entry: TrackedTask, claim: AttemptClaim) -> bool:
        verdict = lifecycle.judge(entry.status, attempt=claim.attempt, epoch=claim.epoch)
        return verdict is Verdict.COUNTS and entry.stage is not TaskStage.FINISHED

    @staticmethod
    def _drop(reason: str, delivery: Delivery) -> None:
        OUTCOMES_DROPPED.labels(reason).inc()
        ack(delivery)


def _ignore_settled(verdict: Settled, text: str) -> None:
    """Ignore the confirm: a lost command costs a run nobody waits for."""
