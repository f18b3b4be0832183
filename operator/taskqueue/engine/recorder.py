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

from taskqueue.broker.connection import Delivery
from taskqueue.broker.contract import (
    DEAD_EXCHANGE,
    ERROR_HEADER,
    ContractError,
    WorkMessage,
    parse_work,
)
from taskqueue.broker.events import AttemptEvent, EventError, EventKind, decode
from taskqueue.cluster.status_writer import Fate, Refused, StatusWriter
from taskqueue.cluster.task_objects import status_patch, status_path
from taskqueue.domain import lifecycle
from taskqueue.domain.lifecycle import Ended, Failure, Verdict
from taskqueue.domain.task import TaskStatus
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
#: Largest result kept in a status, in bytes of JSON; workers check it before they report.
RESULT_LIMIT_BYTES = 16 * 1024
#: History entries of a status that was refused as it was.
_REDUCED_HISTORY = 2

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
    ) -> None:
        self._entries = entries
        self._dispatcher_of = dispatcher_of
        self._writer = writer
        self._tokens = tokens
        self._clock = clock
        self._random = random
        self._on_recorded = on_recorded

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
            self._drop("invalid")
            if delivery.exchange == DEAD_EXCHANGE:
                self._ack(delivery)  # its copy in the dead queue is for people
            else:
                log.warning("outcome.invalid", problem=str(problem))
                give_up(delivery, str(problem))

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
            self._dispatcher_of(entry).submit(entry)
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
        message = parse_work(delivery.properties, delivery.body)
        if not isinstance(message, WorkMessage) or ERROR_HEADER in headers:
            self._ack(delivery)
            return
        entry = self._claim(delivery, message.uid, message.token, message.attempt, message.epoch)
        if entry is None:
            return
        entry.outcomes.append(delivery)
        why = str(headers.get("x-last-death-reason", "unknown"))
        log.warning("outcome.dead_letter", **log_fields(entry.task, why=why))
        lost = why == "delivery_limit"
        self._fail(
            entry,
            Ended(attempt=message.attempt, epoch=message.epoch, now=self._clock()),
            Failure(
                type="WorkerLost" if lost else "DeadLettered",
                message=(
                    "the broker gave the message up: every worker that took it was lost"
                    if lost
                    else f"the broker gave the message up ({why}): look for a consumer of the "
                    "queue that rejects messages"
                ),
            ),
        )

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
        if status.phase.terminal:
            self._done(entry)
            TASKS_FINISHED.labels(*entry.queue_key, status.phase.value).inc()
            self._on_recorded(entry)

    def _refused(self, entry: Entry, status: TaskStatus, fate: Refused) -> None:
        fields = log_fields(entry.task, problem=fate.message)
        if fate.status == 404:
            self.forget(entry)
        elif status.phase.terminal and entry.reduced:
            # Even the short form: the Task was finished by somebody else before.
            log.error("status.refused", **fields)
            self.forget(entry)
        elif status.phase.terminal:
            log.warning("status.reduced", **fields)
            entry.reduced = True
            entry.status = replace(
                status,
                result=None,
                history=status.history[-_REDUCED_HISTORY:],
                message=f"recorded in short, because the API server refused the full status: "
                f"{fate.message}"[:1024],
            )
            self._write(entry, urgent=True)
        else:
            log.warning("status.refused", **fields)

    def _done(self, entry: Entry) -> None:
        entry.stop_timers()
        entry.acknowledge()
        self._entries.pop(entry.task.uid, None)

    def _drop(self, why: str) -> None:
        OUTCOMES_DROPPED.labels(why).inc()

    @staticmethod
    def _ack(delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
