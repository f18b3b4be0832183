"""Turns what workers report into statuses, and statuses into one write a Task.

Contract:

* An outcome is acknowledged only when a write that contains it has succeeded, or when it changes
  nothing (unknown Task, stale, forged); the latter are counted.
* A final status is written at once. Any other is written when it is two seconds old and still
  true, so that a short Task costs one write in all.
* What is not of the contract goes to the dead exchange with the reason in a header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random

from taskqueue.broker import contract, events
from taskqueue.broker.connection import Delivery
from taskqueue.broker.contract import DEAD_EXCHANGE, ERROR_HEADER, AttemptClaim, ContractError
from taskqueue.broker.events import AttemptEvent, EventError, EventKind, decode
from taskqueue.cluster.status_writer import Fate, Refused, StatusWriter
from taskqueue.cluster.task_objects import status_patch, status_path
from taskqueue.domain import lifecycle
from taskqueue.domain.lifecycle import Ended, Failure, Verdict
from taskqueue.domain.task import MESSAGE_LIMIT, TaskStatus
from taskqueue.domain.token import TokenKeys
from taskqueue.engine.dispatcher import Clock, Dispatcher
from taskqueue.engine.entry import Entry, Stage, log_fields
from taskqueue.engine.metrics import OUTCOMES_DROPPED, STATUS_WRITES, TASKS_FINISHED
from taskqueue.logs import EventLog

log = EventLog(__name__)

GiveUp = Callable[[Delivery, str], None]

#: How long an unfinished status must hold before it is worth a write.
SETTLE_SECONDS = 2.0
#: A worker reports `task.started` when an attempt has run this long.
_STARTED_AFTER_SECONDS = 0.5
#: Largest result kept in a status, in bytes of JSON; our workers check it before they report.
RESULT_LIMIT_BYTES = 16 * 1024
#: What an event may add to its result, in bytes.
_ENVELOPE_BYTES = 16 * 1024
#: A worker's word for a handler it does not know, and a Task's reason while none does.
UNKNOWN_HANDLER = "UnknownHandler"
#: How long until a Task whose handler no worker knew is tried again.
HANDLER_SECONDS = 5.0

_TOO_LARGE = Failure(
    type="ResultTooLarge",
    message=f"the result has more than {RESULT_LIMIT_BYTES} bytes of JSON: store it elsewhere and "
    "return where",
    retryable=False,
)
_NO_ERROR = EventError(type="Error", message="the worker gave no reason")


class Recorder:
    """See the module's contract.

    Args:
        entries: the unfinished Tasks by uid; finished ones are removed from it here.
        dispatcher_of: the queue's dispatcher of a Task.
        writer: writes statuses.
        tokens: judge whose outcome counts.
        clock: wall time in seconds.
        random: for the jitter of back-offs.
        on_recorded: called with each Task whose final status is in the API server.
        on_refused: called with a Task whose status is refused for good: it looks whether there
            is still such a Task, and calls `forget` or `write_again`.
    """

    def __init__(
        self,
        *,
        entries: dict[str, Entry],
        dispatcher_of: Callable[[Entry], Dispatcher],
        writer: StatusWriter,
        tokens: TokenKeys,
        clock: Clock,
        random: Random,
        on_recorded: Callable[[Entry], None],
        on_refused: Callable[[Entry], None],
    ) -> None:
        self._entries = entries
        self._dispatcher_of = dispatcher_of
        self._writer = writer
        self._tokens = tokens
        self._clock = clock
        self._random = random
        self._on_recorded = on_recorded
        self._on_refused = on_refused

    def take(self, delivery: Delivery, give_up: GiveUp) -> None:
        """Take a message from the inbox: an event, or a dead letter.

        Args:
            delivery: the message.
            give_up: hands it and a reason to the dead exchange, and acknowledges it then.
        """
        try:
            if delivery.exchange == DEAD_EXCHANGE:
                self._take_dead_letter(delivery)
            else:
                self._take_event(delivery, decode(delivery.body))
        except ContractError as problem:
            log.warning("outcome.invalid", problem=str(problem))
            claim = events.claimed_attempt(delivery.body)
            entry = None if claim is None else self._proven(claim)
            if claim is None or entry is None:
                self._drop("invalid")
                give_up(delivery, str(problem))
                return
            # Its worker has done with it: without an outcome the Task would wait for ever.
            entry.outcomes.append(delivery)
            failure = Failure(type="InvalidOutcome", message=str(problem))
            self._fail(entry, self._ended_now(claim), failure)

    def refuse(self, entry: Entry, *, reason: str, message: str) -> None:
        """End a Task that can never run as it is."""
        self._finish(
            entry,
            lifecycle.refused(entry.status, now=self._clock(), reason=reason, message=message),
        )

    def block(self, entry: Entry, *, reason: str, message: str) -> None:
        """Say what an unfinished Task waits for."""
        self._change(entry, lifecycle.blocked(entry.status, reason=reason, message=message))

    def unblock(self, entry: Entry) -> None:
        """Say that it waits no longer."""
        self._change(entry, lifecycle.unblocked(entry.status))

    def forget(self, entry: Entry) -> None:
        """Let go of a Task that is no longer in the API server, or finished there."""
        entry.stop_timers()
        self._dispatcher_of(entry).withdraw(entry, finished=False)
        entry.acknowledge()
        entry.stage = Stage.FINISHED
        self._entries.pop(entry.task.uid, None)

    # Events.

    def _take_event(self, delivery: Delivery, event: AttemptEvent) -> None:
        entry = self._claim(delivery, event.uid, event.token, event.attempt, event.epoch)
        if entry is None:
            return
        now = self._clock()
        if event.kind is EventKind.STARTED:
            self._ack(delivery)
            if event.attempt >= entry.status.current_attempt:
                self._change(
                    entry,
                    lifecycle.started(
                        entry.status,
                        attempt=event.attempt,
                        now=now - _STARTED_AFTER_SECONDS,
                        worker=event.worker,
                    ),
                    settle=SETTLE_SECONDS - _STARTED_AFTER_SECONDS,
                )
            return
        if event.kind is EventKind.RELEASED:
            # Nothing to record: the attempt goes on elsewhere, with the same token.
            self._ack(delivery)
            self._change(entry, lifecycle.released(entry.status))
            self._dispatcher_of(entry).submit(entry)
            return
        if event.kind is EventKind.FAILED and event.error and event.error.type == UNKNOWN_HANDLER:
            self._ack(delivery)
            self._wait_for_handler(entry, event.error.message)
            return
        entry.outcomes.append(delivery)
        ended = Ended(
            attempt=event.attempt,
            epoch=event.epoch,
            now=now,
            seconds=event.seconds or 0.0,
            worker=event.worker,
        )
        if event.kind is EventKind.SUCCEEDED:
            if len(delivery.body) > RESULT_LIMIT_BYTES + _ENVELOPE_BYTES:
                self._fail(entry, ended, _TOO_LARGE)
            else:
                self._finish(entry, lifecycle.succeeded(entry.status, ended, result=event.result))
            return
        error = event.error or _NO_ERROR
        self._fail(
            entry,
            ended,
            Failure(
                type=error.type,
                message=error.message,
                retryable=error.retryable,
                retry_after_seconds=event.retry_after_seconds,
            ),
        )

    def _take_dead_letter(self, delivery: Delivery) -> None:
        headers = delivery.properties.headers or {}
        claim = contract.claimed_attempt(delivery.properties)
        if claim is None:
            self._ack(delivery)  # a direct message; its copy in the dead queue is for people
            return
        entry = self._claim(delivery, claim.uid, claim.token, claim.attempt, claim.epoch)
        if entry is None:
            return
        entry.outcomes.append(delivery)
        why = str(headers.get(ERROR_HEADER) or headers.get("x-last-death-reason") or "unknown")
        log.warning("outcome.dead_letter", **log_fields(entry.task, why=why))
        if why == "delivery_limit":
            failure = Failure(
                type="WorkerLost",
                message="the broker gave the message up: every worker that took it was lost",
            )
        else:
            failure = Failure(
                type="DeadLettered",
                message=f"the message was given up ({why}): look for a consumer of the queue that "
                "rejects messages, or a worker of another version",
            )
        self._fail(entry, self._ended_now(claim), failure)

    def _wait_for_handler(self, entry: Entry, message: str) -> None:
        """Try again later, uncounted: the workers that know the handler may be on their way."""
        self.block(
            entry,
            reason=UNKNOWN_HANDLER,
            message=f"spec.handler: {message}: roll out workers that know it, and the Task goes "
            "on, or create a Task with another handler",
        )
        self._dispatcher_of(entry).submit(entry, wait_seconds=HANDLER_SECONDS)

    def _ended_now(self, claim: AttemptClaim) -> Ended:
        return Ended(attempt=claim.attempt, epoch=claim.epoch, now=self._clock())

    def _proven(self, claim: AttemptClaim) -> Entry | None:
        """Return the Task a claim is about, if its token is right and its attempt awaited."""
        entry = self._entries.get(claim.uid)
        if entry is None or not self._tokens.verify(
            claim.token, claim.uid, claim.attempt, claim.epoch
        ):
            return None
        verdict = lifecycle.judge(entry.status, attempt=claim.attempt, epoch=claim.epoch)
        return entry if verdict is Verdict.COUNTS else None

    def _claim(
        self, delivery: Delivery, uid: str, token: str, attempt: int, epoch: int
    ) -> Entry | None:
        """Return the Task a message is about, or settle the message if it counts for nothing."""
        entry = self._entries.get(uid)
        if entry is None:
            self._drop("unknown")
            self._ack(delivery)
            return None
        if not self._tokens.verify(token, uid, attempt, epoch):
            log.warning("outcome.forged", **log_fields(entry.task, attempt=attempt))
            self._drop("forged")
            self._ack(delivery)
            return None
        if lifecycle.judge(entry.status, attempt=attempt, epoch=epoch) is Verdict.STALE:
            self._drop("stale")
            if entry.outcomes:
                # Perhaps the very outcome that awaits its write, delivered again by the broker.
                entry.outcomes.append(delivery)
            else:
                self._ack(delivery)
            return None
        return entry

    def _fail(self, entry: Entry, ended: Ended, failure: Failure) -> None:
        dispatcher = self._dispatcher_of(entry)
        status = lifecycle.failed(
            entry.status,
            ended,
            failure,
            policy=dispatcher.policy(entry),
            random=self._random.random(),
        )
        if status.phase.terminal:
            self._finish(entry, status)
        else:
            self._change(entry, status)
            dispatcher.submit(entry)

    # Statuses.

    def _finish(self, entry: Entry, status: TaskStatus) -> None:
        entry.stop_timers()
        self._dispatcher_of(entry).withdraw(entry, finished=True)
        entry.stage = Stage.FINISHED
        entry.status = status
        self._write(entry, urgent=True)

    def _change(self, entry: Entry, status: TaskStatus, settle: float = SETTLE_SECONDS) -> None:
        entry.status = status
        if entry.flush is None:
            loop = asyncio.get_running_loop()
            entry.flush = loop.call_later(settle, self._flush, entry)

    def _flush(self, entry: Entry) -> None:
        entry.flush = None
        if entry.stage is Stage.FINISHED:
            return
        if entry.status == entry.written and not entry.outcomes:
            return
        self._write(entry, urgent=False)

    def _write(self, entry: Entry, *, urgent: bool) -> None:
        status, contained = entry.status, list(entry.outcomes)
        self._writer.put(
            status_path(entry.task),
            status_patch(entry.task, status, now=self._clock()),
            lambda fate: self._settled(entry, status, contained, fate),
            urgent=urgent,
        )

    def _settled(
        self, entry: Entry, status: TaskStatus, contained: list[Delivery], fate: Fate
    ) -> None:
        if isinstance(fate, Refused):
            self._refused(entry, status, fate)
            return
        STATUS_WRITES.inc()
        entry.written = status
        for delivery in contained:
            self._ack(delivery)
        entry.outcomes = [one for one in entry.outcomes if one not in contained]
        if not status.phase.terminal:
            return
        if fate.generation > entry.task.generation:
            # The spec was changed just before: a final status must speak of the last generation,
            # or `kubectl wait` does not believe it.
            entry.task = replace(entry.task, generation=fate.generation)
            self._write(entry, urgent=True)
        else:
            self._done(entry)
            TASKS_FINISHED.labels(*entry.queue_key, status.phase.value).inc()
            self._on_recorded(entry)

    def write_again(self, entry: Entry) -> None:
        """Write the final status of a Task that is still there and still unfinished."""
        if entry.stage is Stage.FINISHED and entry.task.uid in self._entries:
            self._write(entry, urgent=True)

    def _refused(self, entry: Entry, status: TaskStatus, fate: Refused) -> None:
        fields = log_fields(entry.task, problem=fate.message)
        if fate.status == 404 or entry.reduced:
            log.error("status.refused", **fields)
            self._on_refused(entry)
            return
        log.warning("status.reduced", **fields)
        entry.reduced = True
        entry.status = replace(
            status,
            result=None,
            history=(),
            worker="",
            message="recorded in short, because the API server refused the full status: "
            f"{fate.message}"[:MESSAGE_LIMIT],
        )
        self._write(entry, urgent=status.phase.terminal)

    def _done(self, entry: Entry) -> None:
        entry.stop_timers()
        entry.acknowledge()
        self._entries.pop(entry.task.uid, None)

    def _drop(self, why: str) -> None:
        OUTCOMES_DROPPED.labels(why).inc()

    @staticmethod
    def _ack(delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
