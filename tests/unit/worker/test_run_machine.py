"""What a run does in any order of events, judged by the pure machine alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.model.command import CommandKind
from taskqueue.worker import run_effects as effects
from taskqueue.worker import run_events as events
from taskqueue.worker.run_effects import Effect, Timer
from taskqueue.worker.run_machine import (
    KILLED_SECONDS,
    LOST_SECONDS,
    STARTED_SECONDS,
    TIMED_OUT_SECONDS,
    admit,
    step,
)
from taskqueue.worker.run_state import (
    Blocked,
    Ended,
    Ending,
    Queued,
    Released,
    Run,
    Running,
    RunState,
    Stopped,
    TimedOut,
    WorkerLost,
)


@dataclass(frozen=True)
class Error:
    retryable: bool


@dataclass(frozen=True)
class Result:
    seconds: float = 0.1
    error: Error | None = None
    released: bool = False
    lost: str = ""
    not_begun: str = ""


def run(
    *,
    token: str = "t",  # noqa: S107
    keyed: bool = False,
    deliveries: int = 0,
    timeout_seconds: float = 30.0,
) -> Run:
    return Run(token, keyed, deliveries, 3, timeout_seconds)


DIRECT = run(token="")
RUNNING = Running(run(), ("a",), 100.0)
KEYED = Running(run(keyed=True), ("a",), 100.0)


def of_type(todo: tuple[Effect, ...], *kinds: type) -> list[Effect]:
    return [effect for effect in todo if isinstance(effect, kinds)]


# Any order of events.


class Life:
    """One run, and what a runtime would know of it; every event it is sent is possible."""

    def __init__(self, first: Run) -> None:
        self.run = first
        self.state: RunState | None = None
        self.now = 0.0
        self.todo: list[Effect] = []
        self.executed = False
        self.started = 0
        self.confirmed = 0
        self.awaits: list[events.Event] = []
        self.timers: dict[Timer, float] = {}
        self.receipts = ["first"]
        self.settled: list[str] = []
        self.reports: list[object] = []
        self.disowned = self.token_freed = self.dropped = False

    def apply(self, after: RunState | None, todo: tuple[Effect, ...]) -> None:
        self.state = after
        for effect in todo:
            self.todo.append(effect)
            self.execute(effect)
        if of_type(todo, effects.Requeue, effects.Reject):
            assert after is None or isinstance(after, Ending), "it would run beside its copy"
        if after is None:
            assert not self.executed, "its slot would never be free"
            self.timers.clear()

    def execute(self, effect: Effect) -> None:
        if isinstance(effect, effects.StartExecution):
            assert not self.executed
            self.executed, self.started = True, self.started + 1
            self.timers[Timer.ATTEMPT] = effect.timer_at
        elif isinstance(effect, effects.CancelExecution | effects.KillExecution):
            assert self.executed
        elif isinstance(effect, effects.SetTimer):
            assert self.executed, "a timer of a run that does not run"
            self.timers[effect.timer] = effect.at
        elif isinstance(effect, effects.DropTimer):
            self.timers.pop(effect.timer, None)
        elif isinstance(effect, effects.FreeToken):
            self.token_freed = True
        elif isinstance(effect, effects.PublishOutcome):
            assert not self.disowned, "another worker may have it"
            assert not (self.run.keyed and self.executed), "its key would be free"
            self.reports.append(effect.report)
            self.awaits.append(events.OutcomeConfirmed())
        elif isinstance(effect, effects.DeadLetter):
            assert not self.run.token
            self.awaits.append(events.DeadLetterConfirmed())
        elif isinstance(effect, effects.Acknowledge):
            assert self.confirmed, "nobody would know of it"
            self.settle(effect.receipts)
        elif isinstance(effect, effects.Requeue | effects.Reject):
            assert not self.reports, "its end is published: it must not run again"
            self.settle(effect.receipts)
        elif isinstance(effect, effects.Log) and effect.event == "task.disowned":
            self.disowned = True

    def settle(self, receipts: tuple[str, ...]) -> None:
        assert not set(receipts) & set(self.settled), "settled twice"
        self.settled += receipts

    def send(self, event: events.Event) -> None:
        if self.state is not None:
            before = copy.copy(self.state)
            was = self.state
            self.apply(*step(self.state, event))
            assert was == before, "a state was changed"
            assert repr(self.state)


RUNS = st.builds(
    Run,
    token=st.sampled_from(["t", ""]),
    keyed=st.booleans(),
    deliveries=st.integers(0, 3),
    max_deliveries=st.integers(1, 3),
    timeout_seconds=st.sampled_from([0.3, 0.5, 5.0, 60.0]),
    returned=st.booleans(),
).filter(lambda each: bool(each.token) or not (each.keyed or each.returned))

RESULTS = st.builds(
    Result,
    seconds=st.just(0.1),
    error=st.none() | st.builds(Error, st.booleans()),
    lost=st.sampled_from(["", "", "", "gone"]),
)
COMMANDS = st.sampled_from([CommandKind.CANCEL, CommandKind.RELEASE])


def possible(life: Life, data: st.DataObject) -> events.Event:
    """Draw an event that may come now."""
    now, state = life.now, life.state
    kinds: list[events.Event] = [
        events.BrokerSilent(now, data.draw(st.sampled_from([0.0, 2.5]))),
        events.ConnectionLost(now),
        events.PublisherReady(),
        events.ConnectionsClosing(),
    ]
    if life.run.token and not life.token_freed:
        kinds.append(events.CommandReceived(data.draw(COMMANDS), now))
        kinds.append(events.DeliveredAgain(f"more-{len(life.receipts)}"))
    if isinstance(state, Queued):
        kinds += [events.SlotFree(now)] * 4 + [events.PrefetchLowered(), events.DrainBegun()]
    if life.executed:
        kinds += [events.ExecutionEnded(data.draw(RESULTS))] * 2 + [events.GraceEnded(now)]
        if life.disowned:
            kinds.append(events.NextDelivered(7))
        killable = data.draw(st.booleans())
        for timer, at in life.timers.items():
            life.now = max(now, at)
            kinds.append(
                events.AttemptDue(life.now, killable)
                if timer is Timer.ATTEMPT
                else events.EndDue(life.now, killable, data.draw(st.sampled_from([0.0, 2.5])))
            )
    kinds += life.awaits * 2
    return data.draw(st.sampled_from(kinds))


@settings(max_examples=400, deadline=None)
@given(RUNS, st.data())
def test_a_run_is_reported_once_and_acknowledged_after_the_confirm(
    first: Run, data: st.DataObject
) -> None:
    life = Life(first)
    life.apply(*admit(first, ("first",), 0.0, data.draw(st.booleans()), data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(0, 12))):
        life.now += data.draw(st.sampled_from([0.0, 0.4, 3.0]))
        if life.state is None:
            break
        event = possible(life, data)
        if isinstance(event, events.AttemptDue):
            life.timers.pop(Timer.ATTEMPT, None)
        elif isinstance(event, events.EndDue):
            life.timers.pop(Timer.END, None)
        elif isinstance(event, events.ExecutionEnded):
            life.executed = False
            life.timers.pop(Timer.ATTEMPT, None)
        elif isinstance(event, events.OutcomeConfirmed | events.DeadLetterConfirmed):
            life.awaits.remove(event)
            life.confirmed += 1
        elif isinstance(event, events.DeliveredAgain):
            life.receipts.append(event.receipt)
        elif isinstance(event, events.ConnectionLost):
            life.dropped = isinstance(life.state, Queued)  # the broker redelivers it
        life.send(event)
    # Whatever comes, it ends when its execution does and the broker confirms.
    if isinstance(life.state, Queued):
        life.send(events.DrainBegun())
    if life.executed:
        life.executed = False
        life.send(events.ExecutionEnded(Result()))
    while life.awaits:
        life.confirmed += 1
        life.send(life.awaits.pop())
    assert life.state is None
    assert life.started <= 1
    assert len(life.reports) <= 1
    if life.reports:
        assert set(life.settled) == set(life.receipts), "a delivery would stay unacknowledged"
        if not first.token:
            ended = life.reports[0]
            failed = isinstance(ended, TimedOut | WorkerLost) or getattr(ended, "error", None)
            assert bool(of_type(tuple(life.todo), effects.DeadLetter)) == bool(failed)
    elif not life.dropped:
        assert set(life.settled) == set(life.receipts)


# Single steps.


def test_a_delivered_run_starts_in_a_free_slot_or_is_queued() -> None:
    free, busy = admit(run(), ("a",), 9.0, True, False), admit(run(), ("a",), 9.0, False, False)
    assert free == (Running(run(), ("a",), 9.0), (effects.StartExecution(9.0 + STARTED_SECONDS),))
    assert busy == (Queued(run(), ("a",)), (effects.Enqueue(),))


def test_a_redelivered_run_is_counted_and_one_delivered_too_often_is_reported_lost() -> None:
    again, lost = run(deliveries=2), run(deliveries=3)
    assert effects.CountRedelivery() in admit(again, ("a",), 0.0, True, False)[1]
    assert admit(lost, ("a",), 0.0, True, False) == (
        Ended(lost, ("a",), WorkerLost(3)),
        (effects.LogEnd(WorkerLost(3)), effects.PublishOutcome(WorkerLost(3))),
    )


def test_a_blocked_run_is_answered_as_commanded_when_it_may_run() -> None:
    blocked, _ = admit(run(keyed=True), ("a",), 0.0, True, True, blocked=True)
    assert isinstance(blocked, Blocked)
    assert step(blocked, events.CommandReceived(CommandKind.CANCEL, 1.0)) == (blocked, ())
    after, todo = admit(blocked.run, blocked.receipts, 2.0, False, True, CommandKind.CANCEL)
    assert isinstance(after, Ended)
    assert effects.PublishOutcome(Stopped(CommandKind.CANCEL, 0.0)) in todo


def test_a_released_token_is_free_before_its_release_is_published() -> None:
    _, todo = step(Queued(run(), ("a",)), events.DrainBegun())
    assert of_type(todo, effects.FreeToken, effects.PublishOutcome) == [
        effects.FreeToken(),
        effects.PublishOutcome(Released()),
    ]


def test_a_lowered_prefetch_releases_only_tasks_never_delivered_before() -> None:
    lowered = events.PrefetchLowered()
    for kept in (Queued(DIRECT, ("a",)), Queued(run(deliveries=1), ("a",))):
        assert step(kept, lowered) == (kept, ())
    assert effects.Dequeue() in step(Queued(run(), ("a",)), lowered)[1]


def test_a_redelivered_attempt_is_given_back_however_often_it_was_lost() -> None:
    once = replace(run(deliveries=1), returned=True)
    after, todo = admit(once, ("a",), 0.0, slot_free=True, draining=False)
    assert isinstance(after, Ended)
    assert after.awaited == Released()
    assert effects.PublishOutcome(Released()) in todo
    fresh = run()
    assert isinstance(admit(fresh, ("a",), 0.0, slot_free=True, draining=False)[0], Running)
    last = replace(once, deliveries=once.max_deliveries)
    after, _ = admit(last, ("a",), 0.0, slot_free=True, draining=False)
    assert isinstance(after, Ended)
    assert after.awaited == Released()


def test_an_execution_that_needs_its_checkpoint_is_given_back() -> None:
    state = Running(run(deliveries=1), ("a",), 0.0)
    after, todo = step(state, events.ExecutionEnded(Result(released=True)))
    assert isinstance(after, Ended)
    assert todo[-1] == effects.PublishOutcome(Released())


def test_a_failed_direct_message_is_rejected_until_its_last_delivery() -> None:
    failed = events.ExecutionEnded(Result(error=Error(retryable=True)))
    first, last = Running(DIRECT, ("a",), 0.0), Running(run(token="", deliveries=2), ("a",), 0.0)
    after, todo = step(first, failed)
    assert (after, todo[-1]) == (None, effects.Reject(("a",)))
    after, _ = step(last, failed)
    assert isinstance(after, Ended)
    assert step(after, events.OutcomeConfirmed()) == (after, (effects.DeadLetter(failed.result),))
    assert step(after, events.DeadLetterConfirmed()) == (None, (effects.Acknowledge(("a",)),))


def test_a_long_run_reports_its_start_and_then_times_out() -> None:
    started, todo = step(RUNNING, events.AttemptDue(100.5, False))
    assert todo == (
        effects.ReportStarted(),
        effects.SetTimer(Timer.ATTEMPT, 130.0),
        effects.CountLongRun(STARTED_SECONDS),
    )
    assert started is not None
    after, todo = step(started, events.AttemptDue(130.0, False))
    assert isinstance(after, Ending)
    assert effects.CancelExecution() in todo
    assert effects.PublishOutcome(TimedOut(30.0)) in todo


def test_a_keyed_time_out_is_published_when_the_execution_has_ended() -> None:
    started = Running(KEYED.run, KEYED.receipts, 100.0, start_reported=True)
    after, todo = step(started, events.AttemptDue(130.0, False))
    assert not of_type(todo, effects.PublishOutcome)
    assert effects.SetTimer(Timer.END, 130.0 + TIMED_OUT_SECONDS) in todo
    assert after is not None
    _, todo = step(after, events.ExecutionEnded(Result()))
    assert effects.PublishOutcome(TimedOut(30.0)) in todo


def test_a_lost_connection_disowns_a_keyed_run_and_spares_another() -> None:
    lost = events.ConnectionLost(110.0)
    assert step(RUNNING, lost) == (RUNNING, ())
    after, todo = step(KEYED, lost)
    assert isinstance(after, Ending)
    assert (after.disowned, after.end_by) == (True, 110.0 + LOST_SECONDS)
    assert all(effect in todo for effect in (effects.FreeToken(), effects.CancelExecution()))
    after, todo = step(after, events.ExecutionEnded(Result()))
    assert (after, todo[-1]) == (None, effects.Requeue(("a",)))


def test_a_run_stopped_in_a_silence_that_is_over_has_until_its_time_out() -> None:
    silenced, _ = step(KEYED, events.BrokerSilent(110.0, 2.5))
    assert isinstance(silenced, Ending)
    assert silenced.end_by == 112.5
    after, todo = step(silenced, events.EndDue(112.5, False, 5.0))
    assert todo == (effects.SetTimer(Timer.END, 117.5),)
    assert after is not None
    assert step(after, events.EndDue(130.0, False, 5.0))[1] == (effects.Abort(),)


def test_a_second_silence_does_not_give_more_time() -> None:
    silenced, _ = step(KEYED, events.BrokerSilent(110.0, 2.5))
    assert silenced is not None
    assert step(silenced, events.BrokerSilent(111.0, 2.5)) == (silenced, ())


def test_of_several_times_by_which_a_keyed_execution_must_end_the_earliest_counts() -> None:
    silenced, _ = step(KEYED, events.BrokerSilent(110.0, 0.0))
    assert silenced is not None
    after, todo = step(silenced, events.ConnectionLost(110.5))
    assert isinstance(after, Ending)
    assert (after.end_by, after.silenced) == (110.0 + LOST_SECONDS, False)
    assert todo == (effects.SetTimer(Timer.END, 110.0 + LOST_SECONDS),)


def test_a_keyed_execution_that_does_not_end_is_killed_and_then_aborts_the_process() -> None:
    lost, _ = step(KEYED, events.ConnectionLost(110.0))
    assert lost is not None
    killed, todo = step(lost, events.EndDue(111.0, True, 0.0))
    assert todo == (
        effects.KillExecution(),
        effects.SetTimer(Timer.END, 111.0 + KILLED_SECONDS),
    )
    assert killed is not None
    assert step(killed, events.EndDue(113.0, True, 0.0))[1] == (effects.Abort(),)
    assert step(lost, events.EndDue(111.0, False, 0.0))[1] == (effects.Abort(),)


def test_the_next_run_of_a_disowned_one_is_admitted_after_its_deliveries_are_returned() -> None:
    lost, _ = step(KEYED, events.ConnectionLost(110.0))
    assert lost is not None
    waited, _ = step(lost, events.NextDelivered(7))
    assert waited is not None
    _, todo = step(waited, events.ExecutionEnded(Result()))
    assert todo[-2:] == (effects.Requeue(("a",)), effects.AdmitNext(7))
    dropped, _ = step(waited, events.ConnectionLost(111.0))
    assert dropped is not None
    assert not of_type(step(dropped, events.ExecutionEnded(Result()))[1], effects.AdmitNext)


@pytest.mark.parametrize("killable", [True, False])
def test_only_an_execution_that_cannot_be_killed_is_stuck(killable: bool) -> None:
    ending, _ = step(RUNNING, events.CommandReceived(CommandKind.CANCEL, 101.0))
    assert ending is not None
    logged = of_type(step(ending, events.AttemptDue(102.0, killable))[1], effects.Log)
    assert bool(logged) is not killable


def test_a_state_prints_its_stage_without_the_message() -> None:
    assert repr(RUNNING).startswith("Running(run=Run(token='t'")


@pytest.mark.parametrize("token", ["t", ""])
def test_an_attempt_that_could_not_begin_is_given_back_uncounted(token: str) -> None:
    state, _ = admit(run(token=token), ("a",), 0.0, True, False)
    assert state is not None
    after, todo = step(state, events.ExecutionEnded(Result(not_begun="no database")))
    kinds = [type(each) for each in todo]
    assert effects.Log("warning", "task.not_begun", {"reason": "no database"}) in todo
    if token:
        assert effects.PublishOutcome(Released()) in todo
        assert effects.FreeToken in kinds
    else:
        assert after is None
        assert effects.Requeue in kinds
