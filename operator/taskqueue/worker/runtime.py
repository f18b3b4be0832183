"""From deliveries to attempts to outcomes: the worker's state, on one loop, without any waiting.

Invariants
- A delivery is acknowledged only after the broker has confirmed what there was to say about it.
- A token runs at most once at a time here, and never again while its outcome is remembered; a
  second delivery of it joins the first and is settled with it.
- A slot is taken from the start of an execution until the executor says it has ended, even when
  the outcome (a time-out, a release) was told before.
- The end of a run is decided once: whatever comes later is logged and dropped.
- A keyed run is told, and its attempt begun again here, only when its execution has ended: see
  `taskqueue.worker.keyed_guard`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.contract.command import CommandKind, WorkerCommand
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.logs import EventLog
from taskqueue.worker.acknowledger import Acknowledger
from taskqueue.worker.attempt_events import timed_out, worker_lost
from taskqueue.worker.command_log import CommandLog
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.delivery_handler import DeliveryHandler
from taskqueue.worker.executor import AttemptResult, Executor
from taskqueue.worker.keyed_guard import (
    LOST_SECONDS,
    TIMED_OUT_SECONDS,
    KeyedGuard,
    WatchedConnection,
    leave,
)
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.prefetch import PrefetchRule
from taskqueue.worker.run_queue import RunQueue
from taskqueue.worker.runs import Run, RunServices, TaskRun
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")

#: An attempt that runs this long is announced with task.started, in seconds.
STARTED_SECONDS = 0.5

#: A cancelled attempt that has not ended after this long is called stuck, in seconds.
STUCK_SECONDS = 1.0

#: Errors that say all there is in their message: no traceback in the log.
_PLAIN_ERRORS = frozenset({"Retry", "Fail", "Timeout", "UnknownHandler", "WorkerLost"})

_STOPPED = {CommandKind.CANCEL: "task.cancelled", CommandKind.RELEASE: "task.released"}


class Runtime:
    """What a worker has in hand; an `taskqueue.worker.consumer.Intake`.

    Args:
        settings: of the worker.
        executor: runs the attempts.
        reporter: publishes what there is to say.
        loop: the one everything here is called on.
        on_change: called when the prefetch or the number in hand may have changed.
        on_turn: called when the worker may have turned from idle to busy or back, for each attempt
            where there is one slot: it must be cheap.
        leave: ends the process; see `taskqueue.worker.keyed_guard`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        executor: Executor,
        reporter: OutcomeOutbox,
        loop: asyncio.AbstractEventLoop,
        *,
        on_change: Callable[[], None],
        on_turn: Callable[[], None],
        leave: Callable[..., None] = leave,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._loop = loop
        self._on_change = on_change
        self._on_turn = on_turn
        self._desk = RunServices(
            namespace=settings.namespace,
            queue=settings.queue,
            worker=settings.pod,
            direct_max_deliveries=settings.direct_max_deliveries,
            reporter=reporter,
        )
        self._orders = CommandLog()
        self._arrivals = DeliveryHandler(settings, self._desk, self._orders)
        self._guard = KeyedGuard(loop, on_silence=self._silent, leave=leave)
        self._rule = PrefetchRule(settings.slots)
        self._prefetch = settings.slots
        #: The last change of the prefetch lowered it.
        self._lowered = False
        self._acknowledger: Acknowledger | None = None
        self._waiting = RunQueue()
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
        """Slots taken by attempts whose end is told already, but which do not end by any force."""
        return sum(run.settled and not run.killable for run in self._running)

    @property
    def running(self) -> tuple[RunningAttempt, ...]:
        """The attempts of Tasks that run here, and how far they are."""
        return tuple(
            run.described for run in self._running if isinstance(run, TaskRun) and not run.settled
        )

    @property
    def undecided(self) -> int:
        """How many attempts and direct messages run whose end is not decided."""
        return sum(not run.settled for run in self._running)

    @property
    def prefetch(self) -> int:
        """How many deliveries to have in hand at most."""
        return self._prefetch

    # The intake.

    def connected(self, line: WatchedConnection) -> None:
        """Deliveries come by this connection from now on."""
        self._guard.connected(line)

    def channel_opened(self, channel: Channel) -> None:
        """Deliveries of this channel follow."""
        self._acknowledger = Acknowledger(channel, self._loop, on_settled=self._on_change)

    def channel_lost(self) -> None:
        """Forget what has not begun; what runs goes on, its outcome is told all the same.

        Not so what is keyed: it is asked to end and forgotten.
        """
        self._acknowledger = None
        for run in self._waiting.take():
            run.forget()
        self._cut_off("its connection to the broker was lost", self._loop.time() + LOST_SECONDS)

    def in_hand(self) -> int:
        """How many deliveries of the channel are not settled."""
        return 0 if self._acknowledger is None else self._acknowledger.unsettled

    def delivered(self, delivery: Delivery) -> None:
        """Take a delivery: run it, or answer it without."""
        if self._acknowledger is not None:
            run = self._arrivals.take(self._acknowledger, delivery)
            if run is not None:
                self._take(run)

    def ordered(self, order: WorkerCommand) -> None:
        """Keep an order in mind, and stop what it names if that is in hand; again is harmless.

        Orders to drain are no matter of attempts: see `taskqueue.worker.command_consumer`.
        """
        self._orders.add(order.token, order.kind, self._loop.time())
        run = self._desk.by_token.get(order.token)
        if run is not None and not run.settled:
            self._obey(run, order.kind)

    def republish(self) -> None:
        """A publisher is there again: say once more what runs."""
        for run in self._running:
            if run.announced and not run.settled:
                run.tell_started()

    # The end.

    def begin_drain(self) -> None:
        """Take nothing more, and give back what has not begun."""
        self._draining = True
        for run in self._waiting.take():
            self._release(run)
        self._note_idle()

    async def idle(self) -> None:
        """Wait until no attempt is running whose end is still open; for a drain."""
        await self._idle.wait()

    def release_running(self) -> None:
        """The grace period is over: give back what still runs, and ask it to end."""
        for run in self._running:
            if not run.settled:
                log.info("task.released", **run.fields)
                self._ask_to_end(run, run.tell_released)
        self._deadlines.close()

    def kill_running(self) -> None:
        """End by force what can be."""
        for run in self._running:
            if run.execution is not None:
                run.execution.kill()

    async def keyed_ended(self) -> None:
        """Wait until no execution of a keyed attempt is left that was asked to end."""
        await self._guard.all_ended()

    def check_keyed_ended(self) -> None:
        """Before the connections close: end the process if a keyed execution runs on.

        Closing them has the broker deliver it again, and a thread may outlive them for a moment.
        """
        for run in self._running:
            if run.keyed:
                self._guard.leave_for(run)

    # Inside.

    def _take(self, run: Run) -> None:
        if isinstance(run, TaskRun) and run.keyed and (ending := self._ending(run)) is not None:
            ending.successor = run
        elif self._draining:
            self._release(run)
        elif run.deliveries >= run.max_deliveries:
            self._end(run, worker_lost(run.deliveries))
        else:
            self._waiting.put(run)
            if run.deliveries:
                self._rule.redelivered(self._loop.time())
                self._look_at_prefetch()
            self._fill()
            if self._lowered and len(self._running) + len(self._waiting) > self._prefetch:
                self._give_back_ahead()  # it was on its way while the prefetch was lowered

    def _ending(self, run: Run) -> Run | None:
        """Return the earlier run of this attempt, if its execution has not ended yet."""
        return next((each for each in self._running if each.token == run.token), None)

    def _fill(self) -> None:
        while len(self._running) < self._settings.slots:
            run = self._waiting.pop()
            if run is None:
                return
            self._start(run)

    def _start(self, run: Run) -> None:
        run.started_at = self._loop.time()
        self._running.add(run)
        if len(self._running) == 1:
            self._on_turn()
        self._deadlines.set(run, run.started_at + min(STARTED_SECONDS, run.attempt.timeout_seconds))
        run.execution = self._executor.start(run.attempt, partial(self._ended, run))

    def _ended(self, run: Run, result: AttemptResult) -> None:
        self._running.discard(run)
        self._deadlines.drop(run)
        if result.lost and not run.settled:
            log.warning("task.lost", reason=result.lost, **run.fields)
            self._return(run)
        elif run.settled:
            log.info("task.late", seconds=round(result.seconds, 3), **run.fields)
            self._part_with(run)
        else:
            self._rule.ran(result.seconds)
            self._end(run, result)
        run.execution = None
        self._look_at_prefetch()
        self._fill()
        if not self._running:
            self._on_turn()
        self._note_idle()

    def _part_with(self, run: Run) -> None:
        """Do what had to wait for the end of an execution whose end was decided before."""
        self._guard.ended(run)
        if run.farewell is not None:
            run.farewell()
        successor, run.successor = run.successor, None
        if successor is None:
            return
        order = self._orders.get(successor.token)
        if order is None:
            self._take(successor)
        else:
            self._stop_unbegun(successor, order)

    def _due(self, run: Run) -> None:
        """The run has lasted until its next deadline: announce it, time it out, or tell of it."""
        if run.settled:
            if run.killable:
                return
            log.warning(
                "task.stuck",
                reason="it was told to end and does not return: its slot stays taken until it does",
                **run.fields,
            )
        elif not run.announced and run.attempt.timeout_seconds > STARTED_SECONDS:
            run.announced = True
            run.tell_started()
            self._deadlines.set(run, run.started_at + run.attempt.timeout_seconds)
            self._rule.runs_long(STARTED_SECONDS)
            self._look_at_prefetch()
        else:
            result = timed_out(run.attempt.timeout_seconds)
            self._note_end(run, result)
            self._ask_to_end(run, partial(run.tell_ended, result), grace=TIMED_OUT_SECONDS)

    def _ask_to_end(self, run: Run, tell: Callable[[], None], *, grace: float = 0.0) -> None:
        """Decide the end of a run whose execution goes on, and tell it when it may be told.

        A keyed one must have ended at its time-out and grace.
        """
        now = self._loop.time()
        run.settled = True
        if run.execution is not None:
            run.execution.cancel()
        if run.keyed:
            run.farewell = tell
            time_out = run.started_at + run.attempt.timeout_seconds
            self._guard.expect(run, max(time_out + grace, now + LOST_SECONDS))
        else:
            tell()
        self._deadlines.set(run, now + STUCK_SECONDS)
        self._note_idle()

    def _obey(self, run: TaskRun, order: CommandKind) -> None:
        """Stop what an order names."""
        if run in self._running:
            log.info(_STOPPED[order], reason="ordered", **run.fields)
            seconds = self._loop.time() - run.started_at
            self._ask_to_end(run, partial(run.tell_stopped, order, seconds))
        elif self._waiting.take(lambda each: each is run):
            self._stop_unbegun(run, order)
        # Else a successor is answered in its turn: the execution before it has not ended.

    def _stop_unbegun(self, run: TaskRun, order: CommandKind) -> None:
        run.settled = True
        log.info(_STOPPED[order], reason="ordered", **run.fields)
        run.tell_stopped(order, 0.0)

    def _silent(self) -> None:
        self._cut_off("the broker is silent", None)

    def _cut_off(self, reason: str, until: float | None) -> None:
        """Give up what is keyed: another worker may have it soon. ``until``: see the guard."""
        for run in self._waiting.take(lambda run: run.keyed):
            self._return(run)
        for run in self._running:
            if run.successor is not None:
                self._return(run.successor)
                run.successor = None
            if run.keyed and not run.cut:
                log.warning("task.cut_off", reason=reason, **run.fields)
                run.cut = run.settled = True
                run.forget()
                run.farewell = run.give_back
                self._deadlines.drop(run)
                if run.execution is not None:
                    run.execution.cancel()
            if run.keyed:
                self._guard.expect(run, until)
        self._note_idle()

    def _return(self, run: Run) -> None:
        """Let the broker deliver again what has not begun here."""
        run.settled = True
        run.forget()
        run.give_back()

    def _end(self, run: Run, result: AttemptResult) -> None:
        run.settled = True
        self._note_end(run, result)
        run.tell_ended(result)

    def _note_end(self, run: Run, result: AttemptResult) -> None:
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

    def _release(self, run: Run) -> None:
        run.settled = True
        log.info("task.released", **run.fields)
        run.tell_released()

    def _look_at_prefetch(self) -> None:
        prefetch = self._rule.prefetch(self._loop.time())
        lowered = prefetch < self._prefetch
        if prefetch != self._prefetch:
            self._prefetch, self._lowered = prefetch, lowered
            log.debug("prefetch.changed", prefetch=prefetch)
            if lowered:
                self._give_back_ahead()
            self._on_change()

    def _give_back_ahead(self) -> None:
        """What was fetched ahead is for other workers to run.

        Only Tasks never delivered before: a release forgets the deliveries the broker counted, and
        of a direct message it would spend one.
        """
        for run in self._waiting.take(lambda run: isinstance(run, TaskRun) and not run.deliveries):
            self._release(run)

    def _note_idle(self) -> None:
        if self._draining and all(run.settled for run in self._running):
            self._idle.set()
