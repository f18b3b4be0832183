"""From deliveries to attempts to outcomes: the worker's state, on one loop, without any waiting.

`taskqueue.worker.run_machine` decides what becomes of a run. This module gives it what happens as
events, and executes the effects that follow. It owns the slots, the queue for them, the prefetch
and the drain.

Invariant: a token runs at most once at a time here, and not again while its outcome is cached. A
second delivery of it is added to the first run and acknowledged with it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.contract.work import WorkMessage
from taskqueue.logs import EventLog
from taskqueue.worker import run_effects as effects
from taskqueue.worker import run_events as events
from taskqueue.worker.acknowledger import Acknowledger
from taskqueue.worker.command_log import CommandLog
from taskqueue.worker.delivery_handler import DeliveryHandler
from taskqueue.worker.executor import AttemptResult, Execution, Executor
from taskqueue.worker.keyed_guard import KeyedGuard, abort_process
from taskqueue.worker.outcome import not_snoozed, not_stored
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.prefetch import PrefetchRule
from taskqueue.worker.run_machine import Transition, admit, owns_token, step
from taskqueue.worker.run_queue import RunQueue
from taskqueue.worker.run_reporter import RunReporter
from taskqueue.worker.run_state import Ending, Receipt, Run, Running, RunState
from taskqueue.worker.runs import AttemptRun, TaskRun
from taskqueue.worker.settings import WorkerSettings
from taskqueue.worker.slots import Slots

log = EventLog("taskqueue.worker")


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
        self._slots = Slots(
            executor,
            loop,
            settings.slots,
            on_busy_changed=on_busy_changed,
            on_ended=self._on_execution_ended,
            on_attempt_due=self._on_attempt_due,
            on_end_due=self._on_end_due,
        )
        self._executions = self._slots.executions
        self._loop = loop
        self._on_change = on_change
        self._abort_process = abort
        #: The state of each run, by an id of its own, until nothing is left to do for it.
        self._states: dict[int, RunState] = {}
        self._run_ids = itertools.count(1)
        #: Runs whose token must not run a second time.
        self._by_token: dict[str, int] = {}
        self._run_queue = RunQueue()
        self._reporter = RunReporter(settings, outbox, on_confirmed=self._send)
        self._commands = CommandLog()
        self._delivery_handler = DeliveryHandler(
            settings,
            self._reporter,
            self._commands,
            self._by_token,
            is_executed=lambda token: self._ending_id(token) is not None,
            on_checkpoint=self._on_checkpoint,
        )
        self._guard = KeyedGuard(loop, on_silence=self._on_silence)
        self._prefetch_rule = PrefetchRule(settings.slots)
        self._prefetch = settings.slots
        #: Whether the last change of the prefetch lowered it.
        self._prefetch_lowered = False
        self._acknowledger: Acknowledger | None = None
        self._draining = False
        self._executors: Mapping[type, Callable[[int, Any, Any], None]] = {
            effects.Enqueue: self._enqueue,
            effects.Dequeue: self._dequeue,
            effects.StartExecution: self._slots.start,
            effects.CancelExecution: self._slots.cancel,
            effects.KillExecution: self._slots.kill,
            effects.SetTimer: self._slots.set_timer,
            effects.DropTimer: self._slots.drop_timer,
            effects.FreeToken: self._free_token,
            effects.AdmitNext: self._admit_next,
            effects.RecordResult: self._record_result,
            effects.CountLongRun: self._count_long_run,
            effects.CountRedelivery: self._count_redelivery,
            effects.Abort: self._abort,
            effects.ReportStarted: self._reporter.report_started,
            effects.PublishOutcome: self._reporter.publish_outcome,
            effects.DeadLetter: self._reporter.dead_letter,
            effects.Acknowledge: self._reporter.acknowledge,
            effects.Requeue: self._reporter.requeue,
            effects.Reject: self._reporter.reject,
            effects.LogEnd: self._reporter.log_end,
            effects.Log: self._reporter.log,
        }
        #: Set after every event of a run while the worker drains.
        self._progressed = asyncio.Event()

    # For the health check, heartbeats and the drain.

    @property
    def busy(self) -> int:
        """Slots taken."""
        return len(self._executions)

    @property
    def parked(self) -> int:
        """Messages moved to the dead queue because they cannot be read."""
        return self._delivery_handler.parked

    @property
    def stuck(self) -> int:
        """Slots taken by attempts whose end is decided but which nothing can stop."""
        return sum(
            isinstance(self._states[run_id], Ending) and not execution.killable
            for run_id, execution in self._executions.items()
        )

    @property
    def running(self) -> tuple[RunningAttempt, ...]:
        """The attempts of Tasks that run here, with their progress."""
        return tuple(
            _running_attempt(state.run, execution)
            for run_id, execution in self._executions.items()
            if isinstance(state := self._states[run_id], Running) and state.run.token
        )

    @property
    def undecided(self) -> int:
        """How many attempts and direct messages run whose end is not decided."""
        return sum(isinstance(self._states[run_id], Running) for run_id in self._executions)

    @property
    def prefetch(self) -> int:
        """How many unacknowledged deliveries there may be at most."""
        return self._prefetch

    @property
    def unacknowledged(self) -> int:
        """How many deliveries of the channel are not acknowledged."""
        return 0 if self._acknowledger is None else self._acknowledger.unacknowledged

    @property
    def left_over(self) -> int:
        """How many of them came to consumers that have been cancelled since."""
        return 0 if self._acknowledger is None else self._acknowledger.left_over

    # Called by the consumer.

    def on_connected(self, connection: Connection) -> None:
        """Watch this connection: the following channels are opened on it."""
        self._guard.on_connected(connection)

    def on_channel_opened(self, channel: Channel) -> None:
        """Acknowledge the following deliveries on this channel."""
        self._acknowledger = Acknowledger(channel, self._loop, on_acknowledged=self._on_change)

    def on_consumers_cancelled(self) -> None:
        """Note that all consumers of the channel have been cancelled."""
        if self._acknowledger is not None:
            self._acknowledger.on_consumers_cancelled()

    def on_channel_lost(self) -> None:
        """Drop what has not started; what runs continues, and its outcome is published.

        Keyed runs are disowned instead: they are asked to end, and nothing is published of them.
        """
        self._acknowledger = None
        self._send_all(events.ConnectionLost(self._loop.time()))

    def on_delivery(self, delivery: Delivery) -> None:
        """Run the delivery, or answer it without running it."""
        acknowledger = self._acknowledger
        if acknowledger is None:
            return
        found = self._delivery_handler.handle(acknowledger, delivery)
        if found is None:
            return
        receipt = (acknowledger, delivery.delivery_tag)
        if isinstance(found, int):
            self._send(found, events.DeliveredAgain(receipt))
        else:
            self._receive(found, receipt)

    # Called by the command consumer and the outcome publisher.

    def on_command(self, command: WorkerCommand) -> None:
        """Remember a command about an attempt, and stop that if it is here; idempotent.

        A command to drain is not about an attempt: see `taskqueue.worker.command_consumer`.
        """
        if command.is_announcement:
            self._reporter.on_announcement(command)
            return
        now = self._loop.time()
        self._commands.add(command.token, command.kind, now)
        run_id = self._by_token.get(command.token)
        if run_id is not None:
            self._send(run_id, events.CommandReceived(command.kind, now))

    def on_publisher_ready(self) -> None:
        """Publish again what has started and still runs: the old publisher may have lost it."""
        self._send_executed(events.PublisherReady())

    # The end of the worker.

    def begin_drain(self) -> None:
        """Accept nothing more, and release what has not started."""
        self._draining = True
        self._send_queued(events.DrainBegun())

    async def wait_until_idle(self) -> None:
        """Wait until the end of every running attempt is decided; in a drain."""
        await self._wait_until(lambda: self._draining and not self.undecided)

    def release_running(self) -> None:
        """Release what still runs after the grace period, and ask it to end."""
        self._send_executed(events.GraceEnded(self._loop.time()))
        self._slots.close_attempt_timers()

    def kill_running(self) -> None:
        """Kill every execution that can be killed."""
        for execution in self._executions.values():
            execution.kill()

    async def wait_until_keyed_ended(self) -> None:
        """Wait until every keyed execution that was asked to end has ended; in a drain."""
        await self._wait_until(lambda: not self._has_keyed_ending())

    def abort_if_keyed_runs(self) -> None:
        """End the process if a keyed execution still runs; called before the connections close.

        The broker redelivers it once they are closed, and a thread may outlive them for a moment.
        """
        self._send_executed(events.ConnectionsClosing())

    def _has_keyed_ending(self) -> bool:
        states = (self._states[run_id] for run_id in self._executions)
        return any(isinstance(state, Ending) and state.end_by is not None for state in states)

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._progressed.clear()
            await self._progressed.wait()

    # Events.

    def _receive(self, run: AttemptRun, receipt: Receipt) -> None:
        run_id = next(self._run_ids)
        ending_id = self._ending_id(run.token) if run.keyed else None
        if run.token:
            self._by_token[run.token] = run_id
        blocked, slot_free = ending_id is not None, len(self._executions) < self._slots.count
        receipts, now = (receipt,), self._loop.time()
        first = admit(run, receipts, now, slot_free, self._draining, blocked=blocked)
        self._apply(run_id, run, first)
        if ending_id is not None:
            self._send(ending_id, events.NextDelivered(run_id))
        if self._prefetch_lowered:
            self._limit_prefetched()

    def _send(self, run_id: int, event: events.Event) -> None:
        """Step a run, if there is something left to do for it, and execute what follows."""
        state = self._states.get(run_id)
        if state is not None:
            self._apply(run_id, state.run, step(state, event))

    def _apply(self, run_id: int, run: Run, transition: Transition) -> None:
        after, todo = transition
        if after is not None:
            self._states[run_id] = after
        else:
            self._states.pop(run_id, None)
            if run.token:
                self._free_token(run_id, run, None)
        for effect in todo:
            self._executors[type(effect)](run_id, run, effect)
        if self._draining:
            self._progressed.set()

    def _send_all(self, event: events.Event) -> None:
        self._send_queued(event)
        for run_id in tuple(self._states):
            self._send(run_id, event)

    def _send_queued(self, event: events.Event) -> None:
        for run_id in self._run_queue.run_ids:
            self._send(run_id, event)

    def _send_executed(self, event: events.Event) -> None:
        for run_id in tuple(self._executions):
            self._send(run_id, event)

    def _ending_id(self, token: str) -> int | None:
        """Return the earlier run of this attempt, if its execution has not ended yet."""
        states = self._states
        return next((each for each in self._executions if states[each].run.token == token), None)

    def _fill_slots(self) -> None:
        while len(self._executions) < self._slots.count:
            run_id = self._run_queue.pop()
            if run_id is None:
                return
            self._send(run_id, events.SlotFree(self._loop.time()))

    def _on_execution_ended(self, run_id: int, result: AttemptResult) -> None:
        if result.snooze_seconds is not None:
            run = self._states[run_id].run
            if not isinstance(run, TaskRun) or run.message.checkpointed is None:
                result = not_snoozed(result, direct=not run.token)
        if result.unstored is not None:
            result = not_stored(result, direct=not self._states[run_id].run.token)
        self._send(run_id, events.ExecutionEnded(result))
        self._update_prefetch()
        self._fill_slots()

    def _on_checkpoint(self, message: WorkMessage, checkpoint: bytes) -> None:
        executed = (self._states[run_id] for run_id in self._executions)
        if any(owns_token(one) and cast(TaskRun, one.run).message is message for one in executed):
            self._reporter.save_checkpoint(message, checkpoint)

    def _on_attempt_due(self, run_id: int, killable: bool) -> None:
        self._send(run_id, events.AttemptDue(self._loop.time(), killable))

    def _on_end_due(self, run_id: int, killable: bool) -> None:
        left = self._guard.seconds_left
        self._send(run_id, events.EndDue(self._loop.time(), killable, left))

    def _on_silence(self, seconds_left: float) -> None:
        self._send_all(events.BrokerSilent(self._loop.time(), seconds_left))

    def _update_prefetch(self) -> None:
        prefetch = self._prefetch_rule.update(self._loop.time())
        lowered = prefetch < self._prefetch
        if prefetch != self._prefetch:
            self._prefetch, self._prefetch_lowered = prefetch, lowered
            log.debug("prefetch.changed", prefetch=prefetch)
            if lowered:
                self._send_queued(events.PrefetchLowered())
            self._on_change()

    def _limit_prefetched(self) -> None:
        """Release what was on its way while the prefetch was lowered."""
        held = len(self._executions) + len(self._run_queue)
        if self._prefetch_lowered and held > self._prefetch:
            self._send_queued(events.PrefetchLowered())

    # Effects.

    def _enqueue(self, run_id: int, run: AttemptRun, _: effects.Enqueue) -> None:
        self._run_queue.put(run_id, redelivered=run.deliveries > 0)

    def _dequeue(self, run_id: int, run: AttemptRun, _: effects.Dequeue) -> None:
        self._run_queue.remove(run_id, redelivered=run.deliveries > 0)

    def _free_token(self, run_id: int, run: Run, _: effects.FreeToken | None) -> None:
        if self._by_token.get(run.token) == run_id:
            del self._by_token[run.token]

    def _admit_next(self, _: int, __: AttemptRun, effect: effects.AdmitNext) -> None:
        blocked = self._states[effect.next_id]
        run, receipts, now = blocked.run, blocked.receipts, self._loop.time()
        command = self._commands.get(run.token)
        self._apply(effect.next_id, run, admit(run, receipts, now, False, self._draining, command))
        self._fill_slots()
        self._limit_prefetched()

    def _record_result(self, _: int, run: AttemptRun, effect: effects.RecordResult) -> None:
        self._prefetch_rule.on_run_ended(effect.result.seconds)
        self._reporter.log_result(run, effect.result)

    def _count_long_run(self, _: int, __: AttemptRun, effect: effects.CountLongRun) -> None:
        self._prefetch_rule.on_long_run(effect.seconds)
        self._update_prefetch()

    def _count_redelivery(self, _: int, __: AttemptRun, ___: effects.CountRedelivery) -> None:
        self._prefetch_rule.on_redelivery(self._loop.time())
        self._update_prefetch()

    def _abort(self, _: int, run: AttemptRun, __: effects.Abort) -> None:
        self._abort_process(
            "a keyed attempt was asked to end and runs on, and another of its key may start now",
            **run.log_fields,
        )


def _running_attempt(run: Run, execution: Execution) -> RunningAttempt:
    """Return the attempt as a heartbeat reports it."""
    message, progress = cast(TaskRun, run).message, execution.progress
    named = RunningAttempt(message.uid, message.token, attempt=message.attempt, epoch=message.epoch)
    if progress is None:
        return named
    percent = None if progress.percent is None else int(progress.percent)
    return replace(named, percent=percent, message=progress.message)
