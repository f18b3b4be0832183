"""Takes what comes into the operator's inbox: events of workers, and dead letters.

Contract:

* What a message claims counts only if its token proves it and it is not stale; then the recorder is
  told, which acknowledges it. What changes nothing is acknowledged here, and counted.
* The end of a Task that is no longer held is announced again, for the case that the leader that
  recorded it could not: its outcome would not be here any more if it had.
* A worker that begins an attempt nobody waits for is ordered to stop it.
* What is not of the contract goes to the dead exchange with the reason in a header.
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
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import ProgressState
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Largest result kept in a status, in bytes of JSON; our workers check it before they report.
RESULT_LIMIT_BYTES = 16 * 1024
#: What an event may add to its result, in bytes.
_ENVELOPE_BYTES = 16 * 1024

_TOO_LARGE = AttemptFailure(
    type="ResultTooLarge",
    message=f"the result has more than {RESULT_LIMIT_BYTES} bytes of JSON: store it elsewhere and "
    "return where",
    retryable=False,
)
_NO_ERROR = EventError(type="Error", message="the worker gave no reason")
_ENDS = (EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED)


class Inbox:
    """See the module's contract.

    Args:
        entries: the unfinished Tasks by uid.
        dispatcher_of: the dispatcher of a queue, if any Task of it is held.
        recorder: is told what counts.
        announcer: tells everybody of the ends of direct messages.
        tokens: judge whose outcome counts.
        clock: wall time in seconds.
        on_late: called with the outcome of a Task that is not held and acknowledges it, after it
            has announced the end again if the Task is there and finished.
        on_heartbeat: called with what a worker says of itself.
    """

    def __init__(
        self,
        *,
        entries: dict[str, TrackedTask],
        dispatcher_of: Callable[[QueueKey], Dispatcher | None],
        recorder: TaskTransitions,
        announcer: CompletionPublisher,
        tokens: TokenKeys,
        clock: Clock,
        on_late: Callable[[AttemptEvent, Delivery, OutcomeSource], None],
        on_heartbeat: Callable[[Heartbeat], None],
    ) -> None:
        self._entries = entries
        self._dispatcher_of = dispatcher_of
        self._recorder = recorder
        self._announcer = announcer
        self._tokens = tokens
        self._clock = clock
        self._on_late = on_late
        self._on_heartbeat = on_heartbeat

    def take(self, delivery: Delivery, source: OutcomeSource) -> None:
        """Take a message: an event, a dead letter, or a heartbeat."""
        if delivery.exchange == HEARTBEATS_EXCHANGE:
            self._take_heartbeat(delivery, source)
            return
        try:
            if delivery.exchange == DEAD_EXCHANGE:
                self._take_dead_letter(delivery)
                return
            event = decode(delivery.body)
            if event.is_direct:
                self._take_direct(delivery, event, source)
            else:
                self._take_event(delivery, event, source)
        except ContractError as problem:
            self._take_invalid(delivery, source, problem)

    def _take_event(self, delivery: Delivery, event: AttemptEvent, source: OutcomeSource) -> None:
        claim = AttemptClaim(event.uid, event.token, event.attempt, event.epoch)
        if not self._is_genuine(claim):
            log.warning("outcome.forged", namespace=event.namespace, task=event.task, uid=event.uid)
            self._drop("forged", delivery)
            return
        if event.kind is not EventKind.STARTED:
            # Whatever it says: no worker has this attempt any more.
            self._answered((event.namespace, event.queue), event.token)
        entry = self._entries.get(event.uid)
        if entry is None or not self._is_awaited(entry, claim):
            self._take_late(delivery, event, entry, source)
            return
        entry.source = source
        recorder = self._recorder
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
                recorder.started(entry, attempt=event.attempt, worker=event.worker)
            case EventKind.RELEASED:
                recorder.released(entry, delivery)
            case EventKind.CANCELLED:
                recorder.retracted(entry, delivery)
            case EventKind.SUCCEEDED if len(delivery.body) > RESULT_LIMIT_BYTES + _ENVELOPE_BYTES:
                recorder.failed(entry, ended, _TOO_LARGE, delivery)
            case EventKind.SUCCEEDED:
                recorder.succeeded(entry, ended, event.result, delivery)
            case EventKind.FAILED:
                error = event.error or _NO_ERROR
                if error.type == UNKNOWN_HANDLER:
                    recorder.handler_unknown(entry, error.message, delivery)
                    return
                failure = AttemptFailure(
                    type=error.type,
                    message=error.message,
                    retryable=error.retryable,
                    retry_after_seconds=event.retry_after_seconds,
                )
                recorder.failed(entry, ended, failure, delivery)

    def _take_heartbeat(self, delivery: Delivery, source: OutcomeSource) -> None:
        """Take what a worker says of itself and of the attempts it runs."""
        ack(delivery)
        try:
            beat = heartbeat.decode(delivery.body)
        except ContractError as problem:
            log.warning("heartbeat.invalid", problem=str(problem))
            return
        if delivery.routing_key != beat.routing_key:
            log.warning("heartbeat.forged", claimed=beat.routing_key, key=delivery.routing_key)
            return
        for attempt in beat.running:
            entry = self._entries.get(attempt.uid)
            dispatcher = None if entry is None else self._dispatcher_of(entry.queue_key)
            if entry is None or dispatcher is None or dispatcher.token(entry) != attempt.token:
                # Nobody waits for it (any more): its Task was deleted, ended or taken back. If that
                # is yet to be written, the order follows by itself.
                if entry is None or not entry.after_write:
                    self._order_stop(attempt.token, attempt.uid, source)
            else:
                # Its start may have been told to a leader that did not live to write it.
                self._recorder.runs(entry, worker=beat.pod)
                if attempt.percent is not None or attempt.message:
                    self._recorder.progressed(
                        entry, ProgressState(attempt.percent, attempt.message)
                    )
        self._on_heartbeat(beat)

    def _order_stop(self, token: str, uid: str, source: OutcomeSource) -> None:
        if source.publisher is not None:
            order = order_message(WorkerCommand(CommandKind.CANCEL, token=token, uid=uid))
            source.publisher.publish(
                order.exchange, order.key, order.body, order.properties(), _whatever
            )

    def _take_late(
        self,
        delivery: Delivery,
        event: AttemptEvent,
        entry: TrackedTask | None,
        source: OutcomeSource,
    ) -> None:
        """Take an event about an attempt nobody waits for."""
        if event.kind is EventKind.STARTED:
            self._order_stop(event.token, event.uid, source)
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

    def _take_direct(self, delivery: Delivery, event: AttemptEvent, source: OutcomeSource) -> None:
        """Pass the end of a direct message on to whoever listens."""
        self._announcer.announce(
            direct_event(event, arrived_with=delivery.routing_key, now=self._clock()),
            reported=True,
            publisher=source.publisher,
            on_announced=lambda: ack(delivery),
        )

    def _take_dead_letter(self, delivery: Delivery) -> None:
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
            self._answered(entry.queue_key, claim.token)
        if entry is None or not self._is_awaited(entry, claim):
            self._drop("unknown" if entry is None else "stale", delivery)
            return
        why = str(headers.get(ERROR_HEADER) or headers.get("x-last-death-reason") or "unknown")
        log.warning("outcome.dead_letter", **log_fields(entry.task, why=why))
        if why == "delivery_limit":
            failure = AttemptFailure(
                type="WorkerLost",
                message="the broker gave the message up: every worker that took it was lost",
            )
        else:
            failure = AttemptFailure(
                type="DeadLettered",
                message=f"the message was given up ({why}): look for a consumer of the queue that "
                "rejects messages, or a worker of another version",
            )
        self._recorder.failed(entry, self._ended_now(claim), failure, delivery)

    def _take_invalid(
        self, delivery: Delivery, source: OutcomeSource, problem: ContractError
    ) -> None:
        log.warning("outcome.invalid", problem=str(problem))
        claim = outcome.claimed_attempt(delivery.body)
        entry = None if claim is None else self._entries.get(claim.uid)
        if (
            claim is None
            or entry is None
            or not self._is_genuine(claim)
            or not self._is_awaited(entry, claim)
        ):
            OUTCOMES_DROPPED.labels("invalid").inc()
            source.dead_letter_delivery(delivery, str(problem))
            return
        # Its worker has done with it: without an outcome the Task would wait for ever.
        self._answered(entry.queue_key, claim.token)
        failure = AttemptFailure(type="InvalidOutcome", message=str(problem))
        self._recorder.failed(entry, self._ended_now(claim), failure, delivery)

    def _answered(self, key: QueueKey, token: str) -> None:
        dispatcher = self._dispatcher_of(key)
        if dispatcher is not None:
            dispatcher.answered(token)

    def _ended_now(self, claim: AttemptClaim) -> AttemptEnd:
        return AttemptEnd(attempt=claim.attempt, epoch=claim.epoch, now=self._clock())

    def _is_genuine(self, claim: AttemptClaim) -> bool:
        return self._tokens.verify(claim.token, claim.uid, claim.attempt, claim.epoch)

    @staticmethod
    def _is_awaited(entry: TrackedTask, claim: AttemptClaim) -> bool:
        verdict = lifecycle.judge(entry.status, attempt=claim.attempt, epoch=claim.epoch)
        return verdict is Verdict.COUNTS and entry.stage is not TaskStage.FINISHED

    @staticmethod
    def _drop(why: str, delivery: Delivery) -> None:
        OUTCOMES_DROPPED.labels(why).inc()
        ack(delivery)


def _whatever(verdict: Settled, text: str) -> None:
    """An order that is lost costs a run nobody waits for."""
