"""The dispatch queue of a TaskQueue with spec.flow, in virtual time."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.tasks.flow.flow_queue import FlowQueue
from taskqueue.controller.tasks.flow.rate_limiter import RateLimiter
from taskqueue.model.flow import FairnessPolicy, FlowPolicy, PriorityAgeing, RateLimit
from taskqueue.model.task import Task, TaskSpec

_NUMBERS = itertools.count()


def made(team: str = "", *, priority: int = 0, created: float = 0.0, after: float = 0.0) -> Task:
    uid = f"u{next(_NUMBERS)}"
    spec = TaskSpec(queue="q", handler="h", priority=priority, start_after=after or None)
    labels = ("app", "x", "team", team) if team else ()
    return Task(
        namespace="shop",
        name=uid,
        uid=uid,
        generation=1,
        created=created,
        spec=spec,
        labels=labels,
    )


def queue_of(policy: FlowPolicy, now: float = 0.0) -> FlowQueue:
    rates = RateLimiter()
    rates.configure(policy.rate_limits, now)
    return FlowQueue(policy, rates)


TEAMS = FairnessPolicy(label="team", weights={"a": 3})


def test_teams_share_by_weight_and_priority_orders_within_a_team() -> None:
    queue = queue_of(FlowPolicy(fairness=TEAMS))
    urgent = made("b", priority=9, created=5.0)
    tasks = [*(made("a") for _ in range(60)), *(made("b") for _ in range(60)), urgent]
    team_of = {task.uid: task.label("team") for task in tasks}
    for task in tasks:
        assert queue.queue_up(task)
    uids = [queue.pop_next(0.0) for _ in range(40)]
    teams = Counter(team_of[uid or ""] for uid in uids)
    assert abs(teams["a"] - 30) <= 1
    assert next(uid for uid in uids if team_of[uid or ""] == "b") == urgent.uid


def test_tasks_without_the_label_share_one_key() -> None:
    queue = queue_of(FlowPolicy(fairness=TEAMS))
    assert {queue.group_of(made()), queue.group_of(made("a"))} == {"", "a"}


def test_what_was_given_and_not_dispatched_costs_its_team_nothing() -> None:
    queue = queue_of(FlowPolicy(fairness=FairnessPolicy(label="team")))
    refused = made("a", priority=9)
    queue.queue_up(refused)
    tasks = {task.uid: task for task in (made(team) for team in "ab" * 20)}
    for task in tasks.values():
        queue.queue_up(task)
    given = Counter[str]()
    for turns in range(40):
        uid = queue.pop_next(0.0)
        if uid != refused.uid:
            given[tasks[uid or ""].label("team")] += 1
        elif turns < 20:
            queue.queue_up(refused)
        else:
            queue.discard(refused.uid)  # another has its key
    assert abs(given["a"] - given["b"]) <= 2


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 10),
    st.integers(1, 10),
    st.integers(1, 4),
    st.floats(0, 0.5),
    st.booleans(),
)
def test_no_rate_is_exceeded_and_none_is_wasted_whatever_is_read_in_between(
    attempts: int, period: int, burst: int, delay: float, per_key: bool
) -> None:
    """A Task is given, its payload is read for a while, and only then it is dispatched."""
    limit = RateLimit(
        name="l", per_key=per_key, attempts=attempts, period_seconds=period, burst=burst
    )
    queue = queue_of(FlowPolicy(fairness=TEAMS, rate_limits=(limit,)))
    tasks = {task.uid: task for task in (made("ab"[n % 2]) for n in range(30))}
    for task in tasks.values():
        queue.queue_up(task)
    now, loading, times = 0.0, list[tuple[float, str]](), list[tuple[float, str]]()
    while len(times) < 30:
        uid = queue.pop_next(now) if len(loading) < 4 else None
        if uid is not None:
            loading.append((now + delay, uid))
        elif loading:
            due, uid = loading.pop(0)
            now = max(now, due)
            if queue.take(tasks[uid], now):
                times.append((now, tasks[uid].label("team")))
            else:
                queue.queue_up(tasks[uid])
        else:
            wait = queue.wait_seconds(now)
            assert wait, "it waits though it need not"
            now += wait
    for team in "ab" if per_key else ("",):
        of_team = [at for at, one in times if not team or one == team]
        for first, last in itertools.combinations(range(len(of_team)), 2):
            seconds = of_team[last] - of_team[first]
            assert last - first + 1 <= burst + seconds / limit.interval + 1e-3
    slowest = 30 if not per_key else 15
    assert times[-1][0] <= (slowest + burst) * limit.interval + 31 * delay + 1.0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 50), st.integers(0, 100))
def test_with_ageing_a_steady_stream_of_higher_priority_overtakes_for_a_time_only(
    per_seconds: int, step: int, priority: int
) -> None:
    queue = queue_of(FlowPolicy(ageing=PriorityAgeing(per_seconds, step)))
    patient = made(priority=0, created=0.0)
    queue.queue_up(patient)
    overtakes = priority * per_seconds / step
    for second in range(int(overtakes) + 3):
        queue.queue_up(made(priority=priority, created=float(second)))
        uid = queue.pop_next(0.0)
        if uid == patient.uid:
            assert second >= overtakes - 1
            return
    pytest.fail(f"it starves: {overtakes} seconds are over")


def test_a_task_ages_from_its_start_time_on() -> None:
    queue = queue_of(FlowPolicy(ageing=PriorityAgeing(1, 1)))
    late = made(created=0.0, after=100.0)
    early = made(created=50.0)
    queue.queue_up(late)
    queue.queue_up(early)
    assert queue.pop_next(0.0) == early.uid


def test_who_has_no_place_gets_one_in_order_as_others_go() -> None:
    queue = queue_of(FlowPolicy(max_waiting=2))
    tasks = [made(created=n, priority=n == 4) for n in range(5)]
    assert [queue.queue_up(task) for task in tasks] == [True, True, False, False, False]
    assert (len(queue), queue.without_place, len(list(queue))) == (2, 3, 5)
    assert queue.pop_next(0.0) == tasks[0].uid
    # The one of higher priority has the free place.
    assert queue.pop_next(0.0) == tasks[4].uid
    queue.discard(tasks[2].uid)
    assert (len(queue), queue.without_place) == (2, 0)
    assert queue.pop_next(0.0) == tasks[1].uid
    assert queue.pop_next(0.0) == tasks[3].uid
    assert queue.pop_next(0.0) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("qpdb"), st.integers(0, 7)), max_size=80))
def test_never_more_wait_than_may_and_a_free_place_is_taken(steps: list[tuple[str, int]]) -> None:
    queue = queue_of(FlowPolicy(max_waiting=3, fairness=TEAMS))
    tasks = [made("abc"[n % 3]) for n in range(8)]
    waiting, given = set[str](), set[str]()
    for step, which in steps:
        uid = tasks[which].uid
        if step == "q" and uid not in given:
            queue.queue_up(tasks[which])
            waiting.add(uid)
        elif step == "d":
            queue.discard(uid)
            waiting.discard(uid)
            given.discard(uid)
        elif step == "p" and (found := queue.pop_next(0.0)):
            waiting.remove(found)
            given.add(found)
        elif step == "b" and uid in given:
            queue.take(tasks[which], 0.0)
            given.remove(uid)
        assert set(queue) == waiting
        assert len(queue) == min(3, len(waiting))


def test_one_that_comes_back_has_its_place() -> None:
    queue = queue_of(FlowPolicy(max_waiting=1))
    first, second = made(), made()
    queue.queue_up(first)
    queue.queue_up(second)
    assert queue.pop_next(0.0) == first.uid
    assert queue.queue_up(first)
    assert len(queue) == 2


def test_window_is_what_workers_have_room_for_or_what_passes_in_a_second() -> None:
    slow = RateLimit(name="s", attempts=1, period_seconds=60)
    policy = FlowPolicy(rate_limits=(slow,))
    assert queue_of(policy).window(64, 0) == 1
    assert queue_of(policy).window(64, 8) == 16
    fast = replace(slow, attempts=30_000)
    assert queue_of(FlowPolicy(rate_limits=(fast,))).window(1000, 0) == 500
    assert queue_of(FlowPolicy(rate_limits=(fast, slow))).window(1000, 0) == 1
    assert queue_of(FlowPolicy(max_waiting=3)).window(1000, 0) == 1000


def test_tasks_that_a_rate_limit_lets_pass_much_later_ask_for_no_worker() -> None:
    limit = RateLimit(name="s", attempts=10, period_seconds=60, burst=2)
    queue = queue_of(FlowPolicy(rate_limits=(limit,)))
    for _ in range(100):
        queue.queue_up(made())
    assert queue.excess == 88
    assert queue.limited_by(0.0) == "s"
    assert queue.limited_by(6.0) == ""
