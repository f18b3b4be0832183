"""From deliveries to attempts to outcomes: the worker's state, on one loop, without any waiting.

Invariants
- A delivery is acknowledged only after the broker has confirmed the report about it.
- A token runs at most once at a time here, and not again while its outcome is cached. A second
  delivery of it is added to the first run and acknowledged with it.
- A slot is taken from the start of an execution until the executor reports its end, even when the
  outcome (a time-out, a release) was published before.
- The end of a run is decided once: a later result is logged and dropped.
- The end of a keyed run is published, and its attempt started again here, only when its execution
  has ended: see `taskqueue.worker.keyed_guard`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.logs import EventLog
from taskqueue.model.command import CommandKind
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
    abort_process,
)
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.prefetch import PrefetchRule
from taskqueue.worker.run_queue import RunQueue
from taskqueue.worker.runs import Run, RunServices, TaskRun
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")

#: The start of an attempt is published (task.started) when it has run this long, in seconds.
STARTED_SECONDS = 0.5

#: A cancelled attempt that has not ended after this long is called stuck, in seconds.
STUCK_SECONDS = 1.0

#: Errors that say all there is in their message: no traceback in the log.
_PLAIN_ERRORS = frozenset({"Retry", "Fail", "Timeout", "UnknownHandler", "WorkerLost"})

_STOPPED = {CommandKind.CANCEL: "task.cancelled", CommandKind.RELEASE: "task.released"}


class Runtime:
    """Runs the deliveries of a worker in its slots and publishes their outcomes.

    Args:
        settings: of the worker.
        executor: runs the attempts.
        outbox: publishes outcomes until confirmed.
        loop: the one everything here is called on.
        on_change: called when the prefetch or the number of unacknowledged deliveries may have
            changed.
        on_busy_changed: called when the worker may have become busy or idle, for each attempt where
            there is one slot: it must be cheap.
        abort: ends the process; see `taskqueue.worker.keyed_guard.abort_process`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        executor: Executor,
        outbox: OutcomeOutbox,
        loop: asyncio.AbstractEventLoop,
        *,
        on_change: Callable[[], None],
        on_busy_changed: Callable[[], None],
        abort: Callable[..., None] = abort_process,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._loop = loop
        self._on_change = on_change
        self._on_busy_changed = on_busy_changed
        self._services = RunServices(
            namespace=settings.namespace,
            queue=settings.queue,
            worker=settings.pod,
            direct_max_deliveries=settings.direct_max_deliveries,
            outbox=outbox,
        )
        self._commands = CommandLog()
        self._delivery_handler = DeliveryHandler(settings, self._services, self._commands)
        self._guard = KeyedGuard(loop, on_silence=self._on_silence, abort=abort)
        self._prefetch_rule = PrefetchRule(settings.slots)
        self._prefetch = settings.slots
        #: Whether the last change of the prefetch lowered it.
        self._prefetch_lowered = False
        self._acknowledger: Acknowledger | None = None
        self._run_queue = RunQueue()
        #: Everything that holds a slot.
        self._running: set[Run] = set()
        self._deadlines: Deadlines[Run] = Deadlines(loop, self._on_deadline)
        self._draining = False
        self._idle = asyncio.Event()

    # For the health check, heartbeats and the drain.

    @property
    def busy(self) -> int:
        """Slots taken."""
        return len(self._running)

    @property
    def stuck(self) -> int:
        """Slots taken by attempts whose end is decided but which nothing can stop."""
        return sum(run.end_decided and not run.killable for run in self._running)

    @property
    def running(self) -> tuple[RunningAttempt, ...]:
        """The attempts of Tasks that run here, with their progress."""
        return tuple(
            run.running_attempt
            for run in self._running
            if isinstance(run, TaskRun) and not run.end_decided
        )

    @property
    def undecided(self) -> int:
        """How many attempts and direct messages run whose end is not decided."""
        return sum(not run.end_decided for run in self._running)

    @property
    def prefetch(self) -> int:
        """How many unacknowledged deliveries there may be at most."""
        return self._prefetch

    # Called by the consumer.

    def on_connected(self, connection: Connection) -> None:
        """Watch this connection: the following channels are opened on it."""
        self._guard.on_connected(connection)

    def on_channel_opened(self, channel: Channel) -> None:
        """Acknowledge the following deliveries on this channel."""
        self._acknowledger = Acknowledger(channel, self._loop, on_acknowledged=self._on_change)

    def on_channel_lost(self) -> None:
        """Drop what has not started; what runs continues, and its outcome is published.

        Keyed runs are disowned instead: they are asked to end, and nothing is published of them.
        """
        self._acknowledger = None
        for run in self._run_queue.pop_all():
            run.free_token()
        self._disown_keyed(
            "its connection to the broker was lost", self._loop.time() + LOST_SECONDS
        )

    @property
    def unacknowledged(self) -> int:
        """How many deliveries of the channel are not acknowledged."""
        return 0 if self._acknowledger is None else self._acknowledger.unacknowledged

    def on_delivery(self, delivery: Delivery) -> None:
        """Run the delivery, or answer it without running it."""
        if self._acknowledger is not None:
            run = self._delivery_handler.handle(self._acknowledger, delivery)
            if run is not None:
                self._accept(run)

    # Called by the command consumer and the outcome publisher.

    def on_command(self, command: WorkerCommand) -> None:
        """Remember a command about an attempt, and stop that if it is here; idempotent.

        A command to drain is not about an attempt: see `taskqueue.worker.command_consumer`.
        """
        self._commands.add(command.token, command.kind, self._loop.time())
        run = self._services.by_token.get(command.token)
        if run is not None and not run.end_decided:
            self._stop_run(run, command.kind)

    def on_publisher_ready(self) -> None:
        """Publish again what has started and still runs: the old publisher may have lost it."""
        for run in self._running:
            if run.start_reported and not run.end_decided:
                run.report_started()

    # The end of the worker.

    def begin_drain(self) -> None:
        """Accept nothing more, and release what has not started."""
        self._draining = True
        for run in self._run_queue.pop_all():
            self._release(run)
        self._check_idle()

    async def wait_until_idle(self) -> None:
        """Wait until the end of every running attempt is decided; for a drain."""
        await self._idle.wait()

    def release_running(self) -> None:
        """Release what still runs after the grace period, and ask it to end."""
        for run in self._running:
            if not run.end_decided:
                log.info("task.released", **run.log_fields)
                self._ask_to_end(run, run.report_released)
        self._deadlines.close()

    def kill_running(self) -> None:
        """Kill every execution that can be killed."""
        for run in self._running:
            if run.execution is not None:
                run.execution.kill()

    async def wait_until_keyed_ended(self) -> None:
        """Wait until every keyed execution that was asked to end has ended."""
        await self._guard.wait_until_all_ended()

    def abort_if_keyed_runs(self) -> None:
        """End the process if a keyed execution still runs; called before the connections close.

        The broker redelivers it once they are closed, and a thread may outlive them for a moment.
        """
        for run in self._running:
            if run.keyed:
                self._guard.abort_for(run)

    # Runs.

    def _accept(self, run: Run) -> None:
        if isinstance(run, TaskRun) and run.keyed and (ending := self._ending_run(run)) is not None:
            ending.next_run = run
        elif self._draining:
            self._release(run)
        elif run.deliveries >= run.max_deliveries:
            self._report_end(run, worker_lost(run.deliveries))
        else:
            self._run_queue.put(run)
            if run.deliveries:
                self._prefetch_rule.on_redelivery(self._loop.time())
                self._update_prefetch()
            self._fill_slots()
            if (
                self._prefetch_lowered
                and len(self._running) + len(self._run_queue) > self._prefetch
            ):
                self._release_prefetched()  # it was on its way while the prefetch was lowered

    def _ending_run(self, run: Run) -> Run | None:
        """Return the earlier run of this attempt, if its execution has not ended yet."""
        return next((each for each in self._running if each.token == run.token), None)

    def _fill_slots(self) -> None:
        while len(self._running) < self._settings.slots:
            run = self._run_queue.pop()
            if run is None:
                return
            self._start_run(run)

    def _start_run(self, run: Run) -> None:
        run.started_at = self._loop.time()
        self._running.add(run)
        if len(self._running) == 1:
            self._on_busy_changed()
        self._deadlines.set(run, run.started_at + min(STARTED_SECONDS, run.attempt.timeout_seconds))
        run.execution = self._executor.start(run.attempt, partial(self._on_execution_ended, run))

    def _on_execution_ended(self, run: Run, result: AttemptResult) -> None:
        self._running.discard(run)
        self._deadlines.drop(run)
        if result.lost and not run.end_decided:
            log.warning("task.lost", reason=result.lost, **run.log_fields)
            self._requeue(run)
        elif run.end_decided:
            log.info("task.ended_late", seconds=round(result.seconds, 3), **run.log_fields)
            self._finish_decided(run)
        else:
            self._prefetch_rule.on_run_ended(result.seconds)
            self._report_end(run, result)
        run.execution = None
        self._update_prefetch()
        self._fill_slots()
        if not self._running:
            self._on_busy_changed()
        self._check_idle()

    def _finish_decided(self, run: Run) -> None:
        """Do what waited for the execution of a run whose end was decided before."""
        self._guard.on_execution_ended(run)
        if run.on_execution_end is not None:
            run.on_execution_end()
        next_run, run.next_run = run.next_run, None
        if next_run is None:
            return
        command = self._commands.get(next_run.token)
        if command is None:
            self._accept(next_run)
        else:
            self._stop_queued(next_run, command)

    def _on_deadline(self, run: Run) -> None:
        """Report the start of the run, time it out, or log that it is stuck."""
        if run.end_decided:
            if run.killable:
                return
            log.warning(
                "task.stuck",
                reason="it was asked to end and does not return: its slot is taken until it does",
                **run.log_fields,
            )
        elif not run.start_reported and run.attempt.timeout_seconds > STARTED_SECONDS:
            run.start_reported = True
            run.report_started()
            self._deadlines.set(run, run.started_at + run.attempt.timeout_seconds)
            self._prefetch_rule.on_long_run(STARTED_SECONDS)
            self._update_prefetch()
        else:
            result = timed_out(run.attempt.timeout_seconds)
            self._log_end(run, result)
            self._ask_to_end(run, partial(run.report_result, result), grace=TIMED_OUT_SECONDS)

    def _ask_to_end(self, run: Run, report: Callable[[], None], *, grace: float = 0.0) -> None:
        """Decide the end of a run whose execution continues, and report it as soon as allowed.

        The end of a keyed run is reported when its execution has ended, which must be before its
        time-out plus ``grace`` seconds.
        """
        now = self._loop.time()
        run.end_decided = True
        if run.execution is not None:
            run.execution.cancel()
        if run.keyed:
            run.on_execution_end = report
            time_out = run.started_at + run.attempt.timeout_seconds
            self._guard.expect_end(run, max(time_out + grace, now + LOST_SECONDS))
        else:
            report()
        self._deadlines.set(run, now + STUCK_SECONDS)
        self._check_idle()

    def _stop_run(self, run: TaskRun, command: CommandKind) -> None:
        """Stop the run that a command names."""
        if run in self._running:
            log.info(_STOPPED[command], reason="commanded", **run.log_fields)
            seconds = self._loop.time() - run.started_at
            self._ask_to_end(run, partial(run.report_stopped, command, seconds))
        elif self._run_queue.pop_all(lambda each: each is run):
            self._stop_queued(run, command)
        # Else it is a next_run, answered later: the execution before it has not ended.

    def _stop_queued(self, run: TaskRun, command: CommandKind) -> None:
        run.end_decided = True
        log.info(_STOPPED[command], reason="commanded", **run.log_fields)
        run.report_stopped(command, 0.0)

    def _on_silence(self) -> None:
        self._disown_keyed("the broker is silent", None)

    def _disown_keyed(self, reason: str, until: float | None) -> None:
        """Stop keyed runs without a report: the broker may give them to another worker.

        Args:
            reason: for the log.
            until: when their executions must have ended; see `KeyedGuard.expect_end`.
        """
        for run in self._run_queue.pop_all(lambda run: run.keyed):
            self._requeue(run)
        for run in self._running:
            if run.next_run is not None:
                self._requeue(run.next_run)
                run.next_run = None
            if run.keyed and not run.disowned:
                log.warning("task.disowned", reason=reason, **run.log_fields)
                run.disowned = run.end_decided = True
                run.free_token()
                run.on_execution_end = run.requeue
                self._deadlines.drop(run)
                if run.execution is not None:
                    run.execution.cancel()
            if run.keyed:
                self._guard.expect_end(run, until)
        self._check_idle()

    def _requeue(self, run: Run) -> None:
        """Let the broker redeliver it, to any worker."""
        run.end_decided = True
        run.free_token()
        run.requeue()

    def _report_end(self, run: Run, result: AttemptResult) -> None:
        run.end_decided = True
        self._log_end(run, result)
        run.report_result(result)

    def _log_end(self, run: Run, result: AttemptResult) -> None:
        error = result.error
        if error is None:
            if log.verbose:
                log.debug("task.succeeded", seconds=result.seconds, **run.log_fields)
        else:
            log.warning(
                "task.failed",
                exc_info=None if error.type in _PLAIN_ERRORS else result.exception,
                type=error.type,
                message=error.message,
                retryable=error.retryable,
                seconds=round(result.seconds, 3),
                **run.log_fields,
            )

    def _release(self, run: Run) -> None:
        run.end_decided = True
        log.info("task.released", **run.log_fields)
        run.report_released()

    def _update_prefetch(self) -> None:
        prefetch = self._prefetch_rule.update(self._loop.time())
        lowered = prefetch < self._prefetch
        if prefetch != self._prefetch:
            self._prefetch, self._prefetch_lowered = prefetch, lowered
            log.debug("prefetch.changed", prefetch=prefetch)
            if lowered:
                self._release_prefetched()
            self._on_change()

    def _release_prefetched(self) -> None:
        """Release what was prefetched, for other workers to run.

        Only Tasks never delivered before: a release resets the deliveries the broker counted, and
        it would cost a direct message one.
        """
        for run in self._run_queue.pop_all(
            lambda run: isinstance(run, TaskRun) and not run.deliveries
        ):
            self._release(run)

    def _check_idle(self) -> None:
        if self._draining and all(run.end_decided for run in self._running):
            self._idle.set()
