"""What keeps a Task, and what ends it: each line of the precedence, and two properties of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.admission import AdmissionDecision, AdmissionStep, decide
from taskqueue.controller.tasks.dependency_graph import INDEPENDENT, DependencyState
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure
from taskqueue.controller.tasks.tracked_task import Dispatched, TaskEnvironment
from taskqueue.model.task import (
    PENDING,
    Phase,
    Policy,
    PolicyOverrides,
    RetryBackoff,
    Task,
    TaskSpec,
    TaskState,
)

NOW = 1000.0
POLICY = Policy(backoff=RetryBackoff(30.0, 1.0, 30.0, 0.0))
RUNNING = lifecycle.started(PENDING, attempt=1, now=NOW - 50, worker="pod-1")
RETRYING = lifecycle.failed(
    PENDING,
    AttemptEnd(attempt=1, epoch=0, now=NOW - 5, seconds=1.0, worker="pod-1"),
    AttemptFailure(type="Boom", message="it broke"),
    policy=POLICY,
    random=0.5,
)
MISSING = DependencyState(missing=("b",))
WAITING = DependencyState(waiting=("b",))
BROKEN = DependencyState(failed=("b", "has Failed with reason Boom"))
CYCLE = DependencyState(waiting=("b",), cycle=("a", "b", "a"))


def task(**spec: Any) -> Task:
    seconds = spec.pop("deadline", None)
    if seconds is not None:
        spec["overrides"] = PolicyOverrides(active_deadline_seconds=seconds)
    return Task(
        namespace="shop",
        name="a",
        uid="uid-a",
        generation=1,
        created=NOW - 100,
        spec=TaskSpec(queue="q", handler="h", **spec),
    )


def ask(
    asked: Task,
    status: TaskState = PENDING,
    *,
    dispatched: Dispatched = Dispatched.NO,
    now: float = NOW,
    queue: bool = True,
    hold_until: float = 0.0,
    **around: Any,
) -> AdmissionDecision:
    policy = asked.spec.overrides.over(POLICY) if queue else None
    environment = TaskEnvironment(policy=policy, now=now, **around)
    return decide(asked, status, environment, dispatched=dispatched, hold_until=hold_until)


def summary(decision: AdmissionDecision) -> tuple[AdmissionStep, str, str]:
    return decision.step, decision.status.phase.value, decision.status.reason


GOES = (AdmissionStep.GO, "Pending", "")
CANCELLED = (AdmissionStep.END, "Cancelled", "Cancelled")
SUSPENDED = (AdmissionStep.HOLD, "Suspended", "Suspended")
OVERDUE = (AdmissionStep.END, "Failed", "DeadlineExceeded")
NO_QUEUE = (AdmissionStep.HOLD, "Blocked", "QueueNotFound")
INVALID = (AdmissionStep.END, "Failed", "Invalid")
NOT_FOUND = (AdmissionStep.HOLD, "Blocked", "DependencyNotFound")
NOT_COMPLETE = (AdmissionStep.HOLD, "Blocked", "WaitingForDependencies")
NEVER_COMPLETE = (AdmissionStep.END, "Failed", "DependencyFailed")
UNRESOLVED = (AdmissionStep.HOLD, "Blocked", "PayloadUnresolved")
TOO_EARLY = (AdmissionStep.HOLD, "Scheduled", "StartAfter")
BACKS_OFF = (AdmissionStep.HOLD, "Retrying", "Boom")

#: Every obstacle, in the order of precedence: (spec, environment, summary when alone).
OBSTACLES: tuple[tuple[dict[str, Any], dict[str, Any], tuple[AdmissionStep, str, str]], ...] = (
    ({"cancel": True}, {}, CANCELLED),
    ({"suspend": True}, {}, SUSPENDED),
    ({"deadline": 100}, {}, OVERDUE),
    ({}, {"queue": False}, NO_QUEUE),
    ({}, {"dependencies": BROKEN}, NEVER_COMPLETE),
    ({}, {"payload_error": "spec.payloadFrom[0]: no such key"}, UNRESOLVED),
    ({"start_after": NOW + 10}, {}, TOO_EARLY),
)


@pytest.mark.parametrize("first", range(len(OBSTACLES)))
def test_decide_reports_the_first_obstacle_of_several(first: int) -> None:
    spec, around, expected = OBSTACLES[first]
    assert summary(ask(task(**spec), **around)) == expected
    for later_spec, later_around, _ in OBSTACLES[first + 1 :]:
        if "start_after" in later_spec and "deadline" in spec:
            continue  # the deadline counts from there, and has not come
        both = ask(task(**spec, **later_spec), **{**around, **later_around})
        assert summary(both) == expected


def test_a_task_without_obstacles_is_admitted() -> None:
    assert summary(ask(task())) == GOES
    assert ask(task()).status is PENDING  # nothing to write


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (CYCLE, INVALID),
        (replace(BROKEN, missing=("c",), waiting=("d",)), NEVER_COMPLETE),
        (replace(MISSING, waiting=("c",)), NOT_FOUND),
        (WAITING, NOT_COMPLETE),
        (DependencyState(completed=NOW - 1), GOES),
    ],
)
def test_decide_reports_the_worst_dependency(
    state: DependencyState, expected: tuple[AdmissionStep, str, str]
) -> None:
    assert summary(ask(task(depends_on=("b",)), dependencies=state)) == expected


def test_messages_name_the_dependencies() -> None:
    many = tuple(f"d{number}" for number in range(8))
    waits = ask(task(), dependencies=DependencyState(waiting=many)).status.message
    assert "d0, d1, d2, d3, d4 and 3 more" in waits
    five = ask(task(), dependencies=DependencyState(missing=many[:5])).status.message
    assert "d0, d1, d2, d3, d4 in namespace shop" in five
    failed = ask(task(), dependencies=BROKEN).status.message
    assert "Task shop/b has Failed with reason Boom" in failed
    assert "a -> b -> a" in ask(task(), dependencies=CYCLE).status.message
    long = DependencyState(cycle=(*(f"t{number}" for number in range(10_000)), "t0"))
    said = ask(task(), dependencies=long).status.message
    assert "t0 -> t1 -> " in said
    assert "-> t10 -> (9989 more) -> t0: create" in said


@pytest.mark.parametrize("status", [RUNNING, RETRYING, TaskState(concurrency_key="k")])
def test_what_was_dispatched_before_waits_for_its_payload_alone(status: TaskState) -> None:
    asked = task(start_after=NOW + 10)
    after = NOW + 60  # any back-off is over
    late = replace(asked, spec=replace(asked.spec, start_after=after + 10))
    held = ask(late, status, now=after, dependencies=BROKEN, payload_error="gone")
    assert summary(held) == UNRESOLVED
    assert ask(late, status, now=after, dependencies=CYCLE).step is AdmissionStep.GO


def test_start_after_is_reconsidered_when_it_has_come() -> None:
    decision = ask(task(start_after=NOW + 10))
    assert decision.reconsider_at == decision.status.next_attempt_time == NOW + 10
    due = ask(task(start_after=NOW + 10), decision.status, now=NOW + 10)
    assert summary(due) == GOES
    assert due.status.next_attempt_time is None


def test_a_retry_is_waited_for() -> None:
    decision = ask(task(), RETRYING)
    assert summary(decision) == BACKS_OFF
    assert decision.status is RETRYING
    assert decision.reconsider_at == NOW - 5 + 30
    assert ask(task(), RETRYING, now=NOW + 25).step is AdmissionStep.GO


def test_a_retry_is_waited_for_after_another_obstacle_too() -> None:
    blocked = ask(task(), RETRYING, queue=False).status
    assert (blocked.phase, blocked.reason) == (Phase.BLOCKED, "QueueNotFound")
    back = ask(task(), blocked)
    assert summary(back) == BACKS_OFF
    assert (back.status.message, back.reconsider_at) == ("attempt 1 of 3: Boom: it broke", NOW + 25)
    assert summary(ask(task(), blocked, now=NOW + 26)) == GOES


def test_a_passing_obstacle_stays_in_the_status_until_the_next_try() -> None:
    status = lifecycle.blocked(PENDING, reason="UnknownHandler", message="no handler 'h'")
    held = ask(task(), status, hold_until=NOW + 5)
    assert (held.step, held.status, held.reconsider_at) == (AdmissionStep.HOLD, status, NOW + 5)
    tried = ask(task(), status, hold_until=NOW)
    assert (tried.step, tried.status) == (AdmissionStep.GO, status)


@pytest.mark.parametrize("status", [PENDING, RETRYING])
def test_a_task_that_waits_for_its_key_says_so_until_it_has_it(status: TaskState) -> None:
    parked = lifecycle.blocked(status, reason="ConcurrencyLimit", message="spec.concurrencyKey")
    assert ask(task(concurrency_key="k"), parked, now=NOW + 60).status is parked


@pytest.mark.parametrize("dispatched", list(Dispatched))
@pytest.mark.parametrize("status", [PENDING, RUNNING, RETRYING])
def test_a_cancelled_task_ends_whatever_its_phase(
    dispatched: Dispatched, status: TaskState
) -> None:
    assert summary(ask(task(cancel=True), status, dispatched=dispatched)) == CANCELLED


@pytest.mark.parametrize(
    ("dispatched", "epoch"), [(Dispatched.NO, 0), (Dispatched.MAYBE, 1), (Dispatched.YES, 1)]
)
def test_suspending_recalls_an_attempt_that_may_be_with_a_worker(
    dispatched: Dispatched, epoch: int
) -> None:
    decision = ask(task(suspend=True), RUNNING, dispatched=dispatched)
    assert summary(decision) == SUSPENDED
    assert (decision.status.epoch, decision.status.attempts) == (epoch, 1)
    assert (decision.status.worker, decision.status.concurrency_key) == ("", "")


def test_a_suspended_task_is_recalled_once() -> None:
    status = ask(task(suspend=True), RUNNING, dispatched=Dispatched.YES).status
    assert ask(task(suspend=True), status, dispatched=Dispatched.MAYBE).status == status


def test_a_dispatched_task_reacts_to_nothing_else() -> None:
    asked = task(start_after=NOW + 10, deadline=1000)
    decision = ask(
        asked,
        RUNNING,
        dispatched=Dispatched.YES,
        queue=False,
        dependencies=CYCLE,
        payload_error="gone",
    )
    assert (decision.step, decision.status) == (AdmissionStep.GO, RUNNING)


def test_a_published_task_without_its_queue_says_so_until_it_runs_or_the_queue_is_back() -> None:
    lost = ask(task(), PENDING, dispatched=Dispatched.YES, queue=False)
    assert summary(lost) == (AdmissionStep.GO, "Blocked", "QueueNotFound")
    assert summary(ask(task(), lost.status, dispatched=Dispatched.YES)) == GOES


# The deadline.


@pytest.mark.parametrize(
    ("spec", "status", "state", "begins"),
    [
        ({}, PENDING, INDEPENDENT, NOW - 100),
        ({"start_after": NOW - 40}, PENDING, INDEPENDENT, NOW - 40),
        ({}, TaskState(resumed_time=NOW - 30), INDEPENDENT, NOW - 30),
        ({}, PENDING, DependencyState(completed=NOW - 20), NOW - 20),
        (
            {"start_after": NOW - 10},
            TaskState(resumed_time=NOW - 30),
            DependencyState(completed=NOW - 20),
            NOW - 10,
        ),
    ],
)
def test_the_deadline_counts_from_when_it_may_run(
    spec: dict[str, Any], status: TaskState, state: DependencyState, begins: float
) -> None:
    asked = task(deadline=200, **spec)
    for dispatched in (Dispatched.NO, Dispatched.YES):
        before = ask(asked, status, dispatched=dispatched, now=begins + 199, dependencies=state)
        assert (before.step, before.reconsider_at) == (AdmissionStep.GO, begins + 200)
        over = ask(asked, status, dispatched=dispatched, now=begins + 200, dependencies=state)
        assert summary(over) == OVERDUE
        assert "200 s" in over.status.message


@pytest.mark.parametrize("state", [MISSING, WAITING])
def test_no_deadline_runs_while_dependencies_are_waited_for(state: DependencyState) -> None:
    decision = ask(task(deadline=1), now=NOW + 1e6, dependencies=state)
    assert decision.step is AdmissionStep.HOLD
    assert decision.reconsider_at is None


def test_no_deadline_runs_while_suspended_and_a_resumed_task_has_all_its_time() -> None:
    held = ask(task(deadline=10, suspend=True), now=NOW + 1e6)
    assert summary(held) == SUSPENDED
    back = ask(task(deadline=10), held.status, now=NOW + 1e6)
    assert summary(back) == GOES
    assert (back.status.resumed_time, back.reconsider_at) == (NOW + 1e6, NOW + 1e6 + 10)


def test_the_queues_deadline_holds_where_the_task_has_none() -> None:
    around = TaskEnvironment(policy=replace(POLICY, active_deadline_seconds=50), now=NOW)
    over = decide(task(), PENDING, around, dispatched=Dispatched.NO)
    assert summary(over) == OVERDUE


def test_the_earlier_of_deadline_and_retry_is_reconsidered() -> None:
    assert ask(task(deadline=110), RETRYING).reconsider_at == NOW + 10
    assert ask(task(deadline=1000), RETRYING).reconsider_at == NOW + 25


def test_a_new_leader_that_knows_nothing_of_the_dependencies_yet_ends_nothing() -> None:
    """It ran, so they were Complete: when, is looked up; from its creation it would be over."""
    running = replace(RUNNING, start_time=NOW - 5, running_since=None)
    asked = task(deadline=60, depends_on=("b",))
    assert ask(asked, running, dependencies=WAITING).step is AdmissionStep.GO
    claimed = TaskState(concurrency_key="k")
    assert ask(asked, claimed, dependencies=WAITING).step is AdmissionStep.GO


def test_an_attempt_that_is_over_its_deadline_is_in_the_history() -> None:
    status = ask(task(deadline=60), RUNNING, dispatched=Dispatched.YES).status
    (entry,) = status.history
    assert (entry.attempt, entry.outcome, entry.reason) == (1, "Failed", "DeadlineExceeded")
    assert (entry.start_time, entry.finish_time) == (NOW - 50, NOW)


# Properties of every decision.

times = st.sampled_from([NOW - 200, NOW - 30, NOW, NOW + 15, NOW + 300])
maybe_times = st.none() | times
names = st.lists(st.sampled_from("bcd"), max_size=2, unique=True).map(tuple)
states = st.builds(
    DependencyState,
    missing=names,
    waiting=names,
    failed=st.none() | st.just(("b", "was Cancelled")),
    cycle=st.just(()) | st.just(("a", "b", "a")),
    completed=maybe_times,
) | st.just(INDEPENDENT)
specs = st.builds(
    TaskSpec,
    queue=st.just("q"),
    handler=st.just("h"),
    concurrency_key=st.sampled_from(["", "k"]),
    start_after=maybe_times,
    suspend=st.booleans(),
    cancel=st.booleans(),
    overrides=st.builds(
        PolicyOverrides, active_deadline_seconds=st.none() | st.sampled_from([1, 100, 1000])
    ),
)


@st.composite
def statuses(draw: st.DrawFn) -> TaskState:
    status = draw(st.sampled_from([PENDING, RUNNING, RETRYING]))
    if draw(st.booleans()):
        status = lifecycle.claimed(status, key="k")
    extra = draw(st.sampled_from(["", "QueueNotFound", "ConcurrencyLimit", "Scheduled", "Susp"]))
    match extra:
        case "Scheduled":
            status = lifecycle.scheduled(status, at=NOW)
        case "Susp":
            status = lifecycle.suspended(status)
        case "":
            pass
        case reason:
            status = lifecycle.blocked(status, reason=reason, message=reason)
    return replace(status, resumed_time=draw(maybe_times))


environments = st.builds(
    TaskEnvironment,
    policy=st.none() | st.just(POLICY),
    dependencies=states,
    payload_error=st.sampled_from([None, "missing"]),
    now=times,
)


@given(specs, statuses(), environments, st.sampled_from(Dispatched), times)
def test_decide_is_idempotent(
    spec: TaskSpec, status: TaskState, around: TaskEnvironment, dispatched: Dispatched, until: float
) -> None:
    asked = replace(task(), spec=spec)
    first = decide(asked, status, around, dispatched=dispatched, hold_until=until)
    assert first.status.phase.terminal == (first.step is AdmissionStep.END)
    if first.step is AdmissionStep.END:
        return  # never asked again
    if first.step is AdmissionStep.HOLD:
        dispatched = Dispatched.NO
    again = decide(asked, first.status, around, dispatched=dispatched, hold_until=until)
    assert again == first


@given(
    specs,
    statuses(),
    st.lists(st.tuples(environments, st.sampled_from(Dispatched), times), max_size=6),
)
def test_a_task_ends_once_and_never_goes_back(
    spec: TaskSpec, status: TaskState, looks: list[tuple[TaskEnvironment, Dispatched, float]]
) -> None:
    asked = replace(task(), spec=spec)
    for around, dispatched, until in looks:
        before = status
        decision = decide(asked, status, around, dispatched=dispatched, hold_until=until)
        status = decision.status
        assert before.epoch <= status.epoch <= before.epoch + 1
        assert status.attempts == before.attempts
        if decision.step is AdmissionStep.END:
            assert status.completion_time == around.now
            assert (status.next_attempt_time, status.concurrency_key) == (None, "")
            assert len(status.history) - len(before.history) in (0, 1)
            return
        assert status.history == before.history
        assert not (decision.step is AdmissionStep.GO and (spec.suspend or spec.cancel))
        assert decision.reconsider_at is None or decision.reconsider_at > around.now
