"""The life of one run in a worker: ``step(state, event) -> (state, effects)``, after ``admit``.

Pure: no clock, no I/O; what to do is data (`run_effects`), and the runtime does it. What must hold
whatever comes:

* A delivery is acknowledged only after the broker has confirmed the report about it.
* A redelivered attempt is given back: the operator knows whether the worker that had it before runs
  it still, and its last checkpoint. A keyed one without a checkpoint runs: that worker has stopped.
* The end of a run is decided once: a later result is logged and dropped.
* A direct message is acknowledged, rejected for another try, or dead-lettered; its end is published
  before it leaves the queue. A failure that is tried again is not an end.
* The token of a released run is free at once: the operator may publish it again before our confirm,
  and a delivery added to this run would be acknowledged without ever having run.
* The end of a keyed run is published only when its execution has ended. When the broker may deliver
  it to another worker it is disowned: asked to end, and nothing is published. An execution that
  does not end in time is killed, or the process is ended; see `taskqueue.worker.keyed_guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from taskqueue.limits import REPORT_GRACE_SECONDS
from taskqueue.model.command import CommandKind
from taskqueue.worker import run_effects as effects
from taskqueue.worker import run_events as events
from taskqueue.worker.run_effects import Effect, Timer
from taskqueue.worker.run_state import (
    Blocked,
    Ended,
    Ending,
    Queued,
    Receipt,
    Released,
    Report,
    Run,
    Running,
    RunState,
    Stopped,
    TimedOut,
    WorkerLost,
)

#: The start of an attempt is published (task.started) when it has run this long, in seconds.
STARTED_SECONDS = 0.5

#: A cancelled attempt that has not ended after this long is called stuck, in seconds.
STUCK_SECONDS = 1.0

#: How long a keyed execution may take to end once the broker may redeliver, in seconds.
LOST_SECONDS = 1.0

#: How long a killed execution may take to end, in seconds.
KILLED_SECONDS = 2.0

#: How long a keyed one may take after its time limit: the operator waits twice as long for the
#: outcome.
TIMED_OUT_SECONDS = REPORT_GRACE_SECONDS / 2

#: A loop that stood still has unread frames in its socket: it checks twice, this far apart.
SECOND_CHECK_SECONDS = 0.1

_COMMANDED = {CommandKind.CANCEL: "task.cancelled", CommandKind.RELEASE: "task.released"}

#: The next state of a run, None when nothing is left to do for it; what is to be done, in order.
Transition = tuple[RunState | None, tuple[Effect, ...]]

_ENQUEUE: tuple[Effect, ...] = (effects.Enqueue(),)
_RELEASED = effects.Log("info", "task.released", {})
_RETURNED = effects.Log(
    "info", "task.released", {"reason": "delivered again: the worker that had it may run it still"}
)
_CHECKPOINT_NEEDED = effects.Log(
    "info", "task.released", {"reason": "delivered again: it needs its last checkpoint"}
)


def admit(
    run: Run,
    receipts: tuple[Receipt, ...],
    now: float,
    slot_free: bool,
    draining: bool,
    command: CommandKind | None = None,
    *,
    blocked: bool = False,
) -> Transition:
    """Return what follows when a run is delivered, or what blocked it has ended.

    Args:
        run: what is to be run.
        receipts: its deliveries.
        now: the time, on the loop's clock.
        slot_free: it may start at once.
        draining: the worker starts nothing more.
        command: what was commanded about it before.
        blocked: an earlier execution of the same keyed attempt has not ended.
    """
    if blocked:
        return Blocked(run, receipts), ()
    if command is not None:
        return _end(run, receipts, Stopped(command, 0.0), _commanded(command))
    if draining:
        return _end(run, receipts, Released(), _RELEASED)
    if run.deliveries:
        if run.returned:  # the operator counts the deliveries
            return _end(run, receipts, Released(), _RETURNED)
        if run.deliveries >= run.max_deliveries:
            lost = WorkerLost(run.deliveries)
            return _end(run, receipts, lost, effects.LogEnd(lost))
        if slot_free:
            after, start = _start(run, receipts, now)
            return after, (effects.CountRedelivery(), *start)
        return Queued(run, receipts), (effects.Enqueue(), effects.CountRedelivery())
    if slot_free:
        return _start(run, receipts, now)
    return Queued(run, receipts), _ENQUEUE


def step(state: RunState, event: events.Event) -> Transition:
    """Return what follows from an event."""
    return _REACTIONS[type(event)](state, event)


def owns_token(state: RunState) -> bool:
    """Return whether what an execution says counts: no other run can have its token.

    That of a released run is free before its execution has ended.
    """
    if isinstance(state, Ending):
        return state.pending is not None
    return isinstance(state, Running) and bool(state.run.token)


def _on_slot_free(state: RunState, event: events.SlotFree) -> Transition:
    return _start(state.run, state.receipts, event.now)


def _start(run: Run, receipts: tuple[Receipt, ...], now: float) -> Transition:
    seconds = run.timeout_seconds
    timer_at = now + (seconds if seconds < STARTED_SECONDS else STARTED_SECONDS)
    return Running(run, receipts, now), (effects.StartExecution(timer_at),)


def _on_delivered_again(state: RunState, event: events.DeliveredAgain) -> Transition:
    return replace(state, receipts=(*state.receipts, event.receipt)), ()


def _on_next_delivered(state: RunState, event: events.NextDelivered) -> Transition:
    return (replace(state, next_id=event.next_id) if isinstance(state, Ending) else state), ()


def _on_execution_ended(state: RunState, event: events.ExecutionEnded) -> Transition:
    result = event.result
    if isinstance(state, Ending):
        return _on_ended_late(state, result.seconds)
    if result.not_begun:
        given_back = effects.Log("warning", "task.not_begun", {"reason": result.not_begun})
        return _end(state.run, state.receipts, Released(), given_back)
    if result.lost:
        lost = effects.Log("warning", "task.lost", {"reason": result.lost})
        return None, (lost, effects.Requeue(state.receipts))
    if result.released:
        return _end(state.run, state.receipts, Released(), _CHECKPOINT_NEEDED)
    run, receipts, recorded = state.run, state.receipts, effects.RecordResult(result)
    if result.error is not None:
        return _end(run, receipts, result, recorded)
    return Ended(run, receipts, result), (recorded, effects.PublishOutcome(result))


def _on_ended_late(state: Ending, seconds: float) -> Transition:
    """Do what waited for the execution of a run whose end was decided before."""
    run, receipts = state.run, state.receipts
    todo: list[Effect] = [effects.Log("info", "task.ended_late", {"seconds": round(seconds, 3)})]
    if state.end_by is not None:
        todo.append(effects.DropTimer(Timer.END))
    after: RunState | None = None
    if state.disowned:
        todo.append(effects.Requeue(receipts))
    elif state.pending is not None:
        after, report = _end(run, receipts, state.pending)
        todo += report
    elif state.awaited is not None:
        after = Ended(run, receipts, state.awaited)
    if state.next_id is not None:
        todo.append(effects.AdmitNext(state.next_id))
    return after, tuple(todo)


def _on_attempt_due(state: RunState, event: events.AttemptDue) -> Transition:
    """Report the start of the run, time it out, or log that it is stuck."""
    run = state.run
    if isinstance(state, Ending):
        if event.killable:
            return state, ()
        reason = "it was asked to end and does not return: its slot is taken until it does"
        return state, (effects.Log("warning", "task.stuck", {"reason": reason}),)
    if not isinstance(state, Running):
        return state, ()
    if not state.start_reported and run.timeout_seconds > STARTED_SECONDS:
        return replace(state, start_reported=True), (
            effects.ReportStarted(),
            effects.SetTimer(Timer.ATTEMPT, state.started_at + run.timeout_seconds),
            effects.CountLongRun(STARTED_SECONDS),
        )
    report = TimedOut(run.timeout_seconds)
    return _ask_to_end(
        state, event.now, report, effects.LogEnd(report), grace_seconds=TIMED_OUT_SECONDS
    )


def _on_end_due(state: RunState, event: events.EndDue) -> Transition:
    if not isinstance(state, Ending):
        return state, ()
    now, left = event.now, event.seconds_left
    time_out = state.started_at + state.run.timeout_seconds
    if state.killed:
        return state, (effects.Abort(),)
    if state.silenced and left > 0 and now < time_out:
        # The broker was heard from since: the delivery, and with it the key, is still ours.
        end_by = min(now + max(left, SECOND_CHECK_SECONDS), time_out)
        return replace(state, end_by=end_by), (effects.SetTimer(Timer.END, end_by),)
    if event.killable:
        return replace(state, killed=True), (
            effects.KillExecution(),
            effects.SetTimer(Timer.END, now + KILLED_SECONDS),
        )
    return state, (effects.Abort(),)


def _on_command(state: RunState, event: events.CommandReceived) -> Transition:
    if isinstance(state, Running):
        report = Stopped(event.kind, event.now - state.started_at)
        return _ask_to_end(state, event.now, report, _commanded(event.kind))
    if isinstance(state, Queued):
        before = (effects.Dequeue(), _commanded(event.kind))
        return _end(state.run, state.receipts, Stopped(event.kind, 0.0), *before)
    return state, ()  # a blocked one is answered later: the execution before it has not ended


def _on_connection_lost(state: RunState, event: events.ConnectionLost) -> Transition:
    """Drop what has not started; what runs continues, unless it has a key."""
    if isinstance(state, Queued):
        return None, (effects.Dequeue(),)
    if isinstance(state, Blocked):
        return None, ()
    if isinstance(state, Running | Ending) and state.run.keyed:
        after, todo = _disown(state, "its connection to the broker was lost")
        if after.killed:
            return after, todo
        end_by = event.now + LOST_SECONDS
        return _expect_end(replace(after, silenced=False), end_by, todo)
    return state, ()


def _on_broker_silent(state: RunState, event: events.BrokerSilent) -> Transition:
    """Return keyed runs that have not started, and disown those that have."""
    if not state.run.keyed:
        return state, ()
    if isinstance(state, Queued):
        return None, (effects.Dequeue(), effects.Requeue(state.receipts))
    if isinstance(state, Blocked):
        return None, (effects.Requeue(state.receipts),)
    if isinstance(state, Running | Ending):
        after, todo = _disown(state, "the broker is silent")
        if after.killed or after.silenced:
            return after, todo
        end_by = event.now + max(event.seconds_left, LOST_SECONDS)
        return _expect_end(replace(after, silenced=True), end_by, todo)
    return state, ()


def _disown(state: Running | Ending, reason: str) -> tuple[Ending, tuple[Effect, ...]]:
    """Stop a keyed run without a report: the broker may give it to another worker."""
    if isinstance(state, Running):
        state = Ending(state.run, state.receipts, state.started_at)
    todo: tuple[Effect, ...] = ()
    if not state.disowned:
        todo = (
            effects.Log("warning", "task.disowned", {"reason": reason}),
            effects.FreeToken(),
            effects.DropTimer(Timer.ATTEMPT),
            effects.CancelExecution(),
        )
    # A run that is blocked by this one has not started either, and is returned by itself.
    return replace(state, disowned=True, pending=None, next_id=None), todo


def _expect_end(state: Ending, end_by: float, todo: tuple[Effect, ...]) -> Transition:
    """Expect the end of a keyed execution in time; of several times the earliest counts."""
    if state.end_by is not None and state.end_by < end_by:
        end_by = state.end_by
    return replace(state, end_by=end_by), (*todo, effects.SetTimer(Timer.END, end_by))


def _on_publisher_ready(state: RunState, event: events.PublisherReady) -> Transition:
    reported = isinstance(state, Running) and state.start_reported
    return state, (effects.ReportStarted(),) if reported else ()


def _on_prefetch_lowered(state: RunState, event: events.PrefetchLowered) -> Transition:
    """Release what was prefetched, for other workers to run.

    Only Tasks never delivered before: a release resets the deliveries the broker counted, and it
    would cost a direct message one.
    """
    if isinstance(state, Queued) and state.run.token and not state.run.deliveries:
        return _release(state)
    return state, ()


def _on_drain_begun(state: RunState, event: events.DrainBegun) -> Transition:
    return _release(state) if isinstance(state, Queued) else (state, ())


def _on_grace_ended(state: RunState, event: events.GraceEnded) -> Transition:
    if isinstance(state, Running):
        return _ask_to_end(state, event.now, Released(), _RELEASED)
    return state, ()


def _on_connections_closing(state: RunState, event: events.ConnectionsClosing) -> Transition:
    keyed = isinstance(state, Running | Ending) and state.run.keyed
    return state, (effects.Abort(),) if keyed else ()


def _on_outcome_confirmed(state: RunState, event: events.OutcomeConfirmed) -> Transition:
    if not state.run.token and isinstance(state, (Ended, Ending)):
        report = state.awaited
        if report is not None and _failed(report):
            return state, (effects.DeadLetter(report),)
    return _acknowledge(state)


def _on_dead_letter_confirmed(state: RunState, event: events.DeadLetterConfirmed) -> Transition:
    return _acknowledge(state)


def _acknowledge(state: RunState) -> Transition:
    todo = effects.Acknowledge(state.receipts)
    if isinstance(state, Ending):
        return replace(state, receipts=(), awaited=None), (effects.FreeToken(), todo)
    return None, (todo,)


def _release(state: Queued) -> Transition:
    return _end(state.run, state.receipts, Released(), effects.Dequeue(), _RELEASED)


def _commanded(command: CommandKind) -> Effect:
    return effects.Log("info", _COMMANDED[command], {"reason": "commanded"})


def _ask_to_end(
    state: Running, now: float, report: Report, *before: Effect, grace_seconds: float = 0.0
) -> Transition:
    """Decide the end of a run whose execution continues, and report it as soon as allowed.

    The end of a keyed run is reported when its execution has ended, which must be before its
    time-out plus ``grace_seconds``.
    """
    run = state.run
    todo = (*before, effects.CancelExecution())
    stuck = effects.SetTimer(Timer.ATTEMPT, now + STUCK_SECONDS)
    if run.keyed:
        time_out = state.started_at + run.timeout_seconds
        end_by = max(time_out + grace_seconds, now + LOST_SECONDS)
        after = Ending(run, state.receipts, state.started_at, pending=report, end_by=end_by)
        return after, (*todo, effects.SetTimer(Timer.END, end_by), stuck)
    ended, published = _end(run, state.receipts, report)
    if ended is None:  # returned to the broker
        return Ending(run, (), state.started_at), (*todo, *published, stuck)
    after = Ending(run, state.receipts, state.started_at, awaited=report)
    return after, (*todo, *published, stuck)


def _end(run: Run, receipts: tuple[Receipt, ...], report: Report, *before: Effect) -> Transition:
    """Report the end of a run that holds no slot."""
    if run.token:
        if isinstance(report, Released):
            before = (*before, effects.FreeToken())
    elif isinstance(report, Released):
        return None, (*before, effects.Requeue(receipts))
    elif _is_tried_again(run, report):
        return None, (*before, effects.Reject(receipts))
    return Ended(run, receipts, report), (*before, effects.PublishOutcome(report))


def _is_tried_again(run: Run, report: Report) -> bool:
    """Return whether a direct message stays in the queue after a failure."""
    if run.deliveries + 1 >= run.max_deliveries or isinstance(report, Stopped | Released):
        return False
    if isinstance(report, TimedOut | WorkerLost):
        return True
    return report.error is not None and report.error.retryable


def _failed(report: Report) -> bool:
    if isinstance(report, (TimedOut, WorkerLost)):
        return True
    return not isinstance(report, (Stopped, Released)) and report.error is not None


_REACTIONS: Mapping[type, Callable[[RunState, Any], Transition]] = {
    events.SlotFree: _on_slot_free,
    events.DeliveredAgain: _on_delivered_again,
    events.NextDelivered: _on_next_delivered,
    events.ExecutionEnded: _on_execution_ended,
    events.AttemptDue: _on_attempt_due,
    events.EndDue: _on_end_due,
    events.CommandReceived: _on_command,
    events.ConnectionLost: _on_connection_lost,
    events.BrokerSilent: _on_broker_silent,
    events.PublisherReady: _on_publisher_ready,
    events.PrefetchLowered: _on_prefetch_lowered,
    events.DrainBegun: _on_drain_begun,
    events.GraceEnded: _on_grace_ended,
    events.ConnectionsClosing: _on_connections_closing,
    events.OutcomeConfirmed: _on_outcome_confirmed,
    events.DeadLetterConfirmed: _on_dead_letter_confirmed,
}
