"""From deliveries to attempts to outcomes: the worker's state, on one loop, without any waiting.

Invariants
- A delivery is acknowledged only after the broker has confirmed what there was to say about it.
- A token runs at most once at a time here, and never again while its outcome is remembered; a
  second delivery of it joins the first and is settled with it.
- A slot is taken from the start of an execution until the executor says it has ended, even when
  the outcome (a time-out, a release) was told before.
- The end of a run is decided once: whatever comes later is logged and dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from taskqueue.broker.connection import Channel, Delivery
from taskqueue.broker.contract import (
    ContractError,
    DirectMessage,
    WorkMessage,
    deliveries_so_far,
    parse_work,
)
from taskqueue.broker.worker_messages import outcome_message
from taskqueue.logs import EventLog
from taskqueue.worker.acknowledger import Acknowledger
from taskqueue.worker.attempt_events import payload_of, timed_out, work_attempt, worker_lost
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.executor import Attempt, AttemptResult, Executor
from taskqueue.worker.prefetch import PrefetchRule
from taskqueue.worker.reporter import Reporter
from taskqueue.worker.runs import Desk, DirectRun, Run, TaskRun
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")

#: An attempt that runs this long is announced with task.started, in seconds.
STARTED_SECONDS = 0.5

#: A cancelled attempt that has not ended after this long is called stuck, in seconds.
STUCK_SECONDS = 1.0

#: Errors that say all there is in their message: no traceback in the log.
_PLAIN_ERRORS = frozenset({"Retry", "Fail", "Timeout", "UnknownHandler", "WorkerLost"})


class Runtime:
    """What a worker has in hand; an `taskqueue.worker.consume_line.Intake`.

    Args:
        settings: of the worker.
        executor: runs the attempts.
        reporter: publishes what there is to say.
        loop: the one everything here is called on.
        on_change: called when the prefetch or the number in hand may have changed.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        executor: Executor,
        reporter: Reporter,
        loop: asyncio.AbstractEventLoop,
        *,
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._loop = loop
        self._on_change = on_change
        self._desk = Desk(
            namespace=settings.namespace,
            queue=settings.queue,
            worker=settings.pod,
            direct_max_deliveries=settings.direct_max_deliveries,
            reporter=reporter,
        )
        self._rule = PrefetchRule(settings.slots)
        self._prefetch = settings.slots
        self._acknowledger: Acknowledger | None = None
        #: Without a slot yet, in the order they came.
        self._waiting: deque[Run] = deque()
        #: Delivered before: run when nothing else waits, so that a lost worker costs the fewest.
        self._careful: deque[Run] = deque()
        #: Everything that holds a slot.
        self._running: set[Run] = set()
        self._deadlines: Deadlines[Run] = Deadlines(loop, self._due)
        self._draining = False
        self._idle = asyncio.Event()

    # What the health check and the drain look at.

    @property
    def busy(self) -> int:
        """Slots taken."""
        return len(self._running)

    @property
    def stuck(self) -> int:
        """Slots taken by attempts whose end is told already, but which do not end."""
        return sum(run.settled for run in self._running)

    @property
    def prefetch(self) -> int:
        """How many deliveries to have in hand at most."""
        return self._prefetch

    # The intake.

    def channel_opened(self, channel: Channel) -> None:
        """Deliveries of this channel follow."""
        self._acknowledger = Acknowledger(channel, self._loop, on_settled=self._on_change)

    def channel_lost(self) -> None:
        """Forget what has not begun; what runs goes on, its outcome is told all the same."""
        self._acknowledger = None
        for run in (*self._waiting, *self._careful):
            run.forget()
        self._waiting.clear()
        self._careful.clear()

    def in_hand(self) -> int:
        """How many deliveries of the channel are not settled."""
        return 0 if self._acknowledger is None else self._acknowledger.unsettled

    def delivered(self, delivery: Delivery) -> None:
        """Take a delivery: run it, join it to the run of its token, answer it, or bury it."""
        acknowledger = self._acknowledger
        if acknowledger is None:
            return
        acknowledger.received(delivery.delivery_tag)
        try:
            message = parse_work(delivery.properties, delivery.body)
            if isinstance(message, WorkMessage):
                if self._known(acknowledger, delivery, message):
                    return
                run: Run = self._task_run(delivery, message)
            else:
                run = self._direct_run(delivery, message)
        except ContractError as problem:
            self._bury(acknowledger, delivery, str(problem))
            return
        run.join(acknowledger, delivery)
        self._take(run)

    def republish(self) -> None:
        """A publisher is there again: say once more what runs."""
        for run in self._running:
            if run.announced and not run.settled:
                run.tell_started()

    # The end.

    def begin_drain(self) -> None:
        """Take nothing more, and give back what has not begun."""
        self._draining = True
        for run in (*self._waiting, *self._careful):
            self._release(run)
        self._waiting.clear()
        self._careful.clear()
        self._note_idle()

    async def idle(self) -> None:
        """Wait until no attempt is running whose end is still open; for a drain."""
        await self._idle.wait()

    def release_running(self) -> None:
        """The grace period is over: give back what still runs, and ask it to end."""
        for run in self._running:
            if not run.settled:
                self._release(run)
                if run.execution is not None:
                    run.execution.cancel()
        self._deadlines.close()

    # Inside.

    def _known(self, acknowledger: Acknowledger, delivery: Delivery, message: WorkMessage) -> bool:
        """Settle a delivery whose token is in hand or has ended lately."""
        run = self._desk.by_token.get(message.token)
        if run is not None:
            run.join(acknowledger, delivery)
            return True
        outcome = self._desk.finished.get(message.token)
        if outcome is None:
            return False
        log.info(
            "outcome.repeated",
            namespace=message.namespace,
            task=message.task,
            uid=message.uid,
            attempt=message.attempt,
        )
        self._desk.reporter.report(
            outcome_message(outcome.key, outcome.body),
            partial(acknowledger.confirm, delivery.delivery_tag),
        )
        return True

    def _task_run(self, delivery: Delivery, message: WorkMessage) -> Run:
        deliveries = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        attempt = work_attempt(message, payload_of(message))
        return TaskRun(self._desk, message, attempt, delivery, deliveries)

    def _direct_run(self, delivery: Delivery, message: DirectMessage) -> Run:
        deliveries = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        attempt = Attempt(
            handler=message.handler,
            payload=message.payload,
            task=f"{self._settings.namespace}/{self._settings.queue}",
            uid=message.correlation_id or "",
            queue=self._settings.queue,
            attempt=deliveries + 1,
            max_attempts=self._settings.direct_max_deliveries,
            timeout_seconds=self._settings.direct_timeout_seconds,
        )
        return DirectRun(self._desk, attempt, delivery, deliveries)

    def _take(self, run: Run) -> None:
        if self._draining:
            self._release(run)
        elif run.deliveries >= run.max_deliveries:
            self._end(run, worker_lost(run.deliveries))
        elif run.deliveries:
            self._rule.redelivered(self._loop.time())
            self._careful.append(run)
            self._look_at_prefetch()
            self._fill()
        else:
            self._waiting.append(run)
            self._fill()

    def _bury(self, acknowledger: Acknowledger, delivery: Delivery, reason: str) -> None:
        log.warning(
            "message.malformed",
            namespace=self._settings.namespace,
            queue=self._settings.queue,
            reason=reason,
            todo="it is in the queue of given-up messages, with the reason in its tq-error header",
        )
        self._desk.reporter.report(
            self._desk.bury(delivery, reason), partial(acknowledger.confirm, delivery.delivery_tag)
        )

    def _fill(self) -> None:
        while len(self._running) < self._settings.slots:
            if self._waiting:
                self._start(self._waiting.popleft())
            elif self._careful:
                self._start(self._careful.popleft())
            else:
                return

    def _start(self, run: Run) -> None:
        run.started_at = self._loop.time()
        self._running.add(run)
        self._deadlines.set(run, run.started_at + min(STARTED_SECONDS, run.attempt.timeout_seconds))
        run.execution = self._executor.start(run.attempt, partial(self._ended, run))

    def _ended(self, run: Run, result: AttemptResult) -> None:
        self._running.discard(run)
        self._deadlines.drop(run)
        if run.settled:
            log.info("task.late", seconds=round(result.seconds, 3), **run.fields)
        else:
            self._rule.ran(result.seconds)
            self._end(run, result)
        run.execution = None
        self._look_at_prefetch()
        self._fill()
        self._note_idle()

    def _due(self, run: Run) -> None:
        """The run has lasted until its next deadline: announce it, time it out, or tell of it."""
        if run.settled:
            log.warning(
                "task.stuck",
                reason="it timed out and does not return: its slot stays taken until it does",
                **run.fields,
            )
        elif not run.announced and run.attempt.timeout_seconds > STARTED_SECONDS:
            run.announced = True
            run.tell_started()
            self._deadlines.set(run, run.started_at + run.attempt.timeout_seconds)
            self._rule.runs_long(STARTED_SECONDS)
            self._look_at_prefetch()
        else:
            self._end(run, timed_out(run.attempt.timeout_seconds))
            if run.execution is not None:
                run.execution.cancel()
            self._deadlines.set(run, self._loop.time() + STUCK_SECONDS)
            self._note_idle()

    def _end(self, run: Run, result: AttemptResult) -> None:
        run.settled = True
        error = result.error
        if error is None:
            if log.verbose:
                log.debug("task.succeeded", seconds=result.seconds, **run.fields)
        else:
            log.warning(
                "task.failed",
                exc_info=None if error.type in _PLAIN_ERRORS else result.exception,
                type=error.type,
                message=error.message,
                retryable=error.retryable,
                seconds=round(result.seconds, 3),
                **run.fields,
            )
        run.tell_ended(result)

    def _release(self, run: Run) -> None:
        run.settled = True
        log.info("task.released", **run.fields)
        run.tell_released()

    def _look_at_prefetch(self) -> None:
        prefetch = self._rule.prefetch(self._loop.time())
        lowered = prefetch < self._prefetch
        if prefetch != self._prefetch:
            self._prefetch = prefetch
            log.debug("prefetch.changed", prefetch=prefetch)
            if lowered:
                self._give_back_ahead()
            self._on_change()

    def _give_back_ahead(self) -> None:
        """What was fetched ahead is for other workers to run.

        Only Tasks never delivered before: a release forgets the deliveries the broker counted, and
        of a direct message it would spend one.
        """
        kept: deque[Run] = deque()
        for run in self._waiting:
            if isinstance(run, TaskRun):
                self._release(run)
            else:
                kept.append(run)
        self._waiting = kept

    def _note_idle(self) -> None:
        if self._draining and all(run.settled for run in self._running):
            self._idle.set()
