"""Conflicts of concurrency keys: who ends, and that no older Task runs after a newer one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.tasks.flow.key_conflicts import Contender, Standing, losers
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.command import CommandKind
from taskqueue.model.flow import ConcurrencyPolicy, OnConflict
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TaskHarness, raw_task, turn
from tests.unit.controller.virtual_time import VirtualLoop

NEWEST = [OnConflict.KEEP_NEWEST, OnConflict.CANCEL_RUNNING]

contenders = st.lists(st.sampled_from(Standing), max_size=8).flatmap(
    lambda found: st.permutations(range(len(found))).map(
        lambda orders: [
            Contender(f"u{number}", (0.0, order), standing)
            for number, (standing, order) in enumerate(zip(found, orders, strict=True))
        ]
    )
)


def left(policy: OnConflict, found: list[Contender]) -> list[Contender]:
    ended = {lost.uid for lost, _ in losers(policy, found)}
    return [one for one in found if one.uid not in ended]


@given(contenders)
def test_nobody_ends_where_they_wait(found: list[Contender]) -> None:
    assert not losers(OnConflict.QUEUE, found)


@given(st.sampled_from(OnConflict), contenders)
def test_what_is_decided_once_is_decided(policy: OnConflict, found: list[Contender]) -> None:
    remaining = left(policy, found)
    assert not losers(policy, remaining)
    assert bool(remaining) == bool(found)


@given(st.sampled_from(NEWEST), contenders)
def test_only_the_newest_waits_and_nothing_older_is_left_to_follow_it(
    policy: OnConflict, found: list[Contender]
) -> None:
    remaining = left(policy, found)
    waiting = [one for one in remaining if one.standing is Standing.WAITING]
    dispatched = [one for one in remaining if one.standing is Standing.DISPATCHED]
    assert len(waiting) <= 1
    assert len(dispatched) <= 1 or policy is OnConflict.KEEP_NEWEST
    assert not (waiting and dispatched) or policy is OnConflict.KEEP_NEWEST
    for out in dispatched:
        others = [one for one in remaining if one.standing is not Standing.DISPATCHED]
        assert all(one.order > out.order for one in others)
    for lost, winner in losers(policy, found):
        assert lost.order < winner.order


@given(contenders)
def test_what_runs_or_has_begun_is_never_rejected_and_one_stays(found: list[Contender]) -> None:
    ended = [lost for lost, _ in losers(OnConflict.REJECT, found)]
    assert all(one.standing is Standing.WAITING for one in ended)
    remaining = left(OnConflict.REJECT, found)
    under_way = {Standing.WAITING, Standing.DISPATCHED, Standing.BEGUN}
    assert any(one.standing in under_way for one in remaining) or not any(
        one.standing in under_way for one in found
    )
    assert sum(one.standing is Standing.WAITING for one in remaining) <= 1


def harness_of(policy: OnConflict) -> TaskHarness:
    return TaskHarness(keys=ConcurrencyPolicy(on_conflict=policy))


def add(harness: TaskHarness, number: int, **spec: object) -> TrackedTask:
    """Create the Task of this number; all of them in one second."""
    raw = raw_task(f"t{number}", concurrencyKey="k", **spec)  # type: ignore[arg-type]
    raw["metadata"]["resourceVersion"] = str(100 + number)
    return harness.show(raw)


async def written(harness: TaskHarness) -> None:
    """Have the API server take everything."""
    while harness.writer.writes:
        writes, harness.writer.writes = harness.writer.writes, []
        for write in writes:
            write.succeed(version=1000)
        await turn()


async def running(harness: TaskHarness, number: int, **spec: object) -> TrackedTask:
    entry = add(harness, number, **spec)
    harness.open()
    await turn()
    await written(harness)
    assert entry.stage is TaskStage.PUBLISHED
    harness.publisher.settle(Settled.CONFIRMED)
    return entry


@pytest.mark.looptime
async def test_only_the_newest_waits_while_one_runs_to_its_end() -> None:
    harness = harness_of(OnConflict.KEEP_NEWEST)
    first = await running(harness, 1)
    second, third = add(harness, 2), add(harness, 3)
    assert (second.status.phase, second.status.reason) == (Phase.CANCELLED, "Superseded")
    assert "Task t3 is newer and has the same key k" in second.status.message
    assert harness.dispatcher.published == 1
    harness.event(first, EventKind.SUCCEEDED)
    await turn()
    await written(harness)
    assert harness.publisher.names == ["t3"]
    assert third.stage is TaskStage.PUBLISHED


@pytest.mark.looptime
async def test_a_retry_does_not_follow_a_newer_task() -> None:
    harness = harness_of(OnConflict.KEEP_NEWEST)
    first = await running(harness, 1)
    second = add(harness, 2)
    harness.event(first, EventKind.FAILED, error=EventError(type="Boom", message="no"))
    await turn()
    await written(harness)
    assert second.stage is TaskStage.PUBLISHED
    assert (first.status.phase, first.status.reason) == (Phase.CANCELLED, "Superseded")
    await asyncio.sleep(60)
    assert harness.publisher.names == ["t2"]


@pytest.mark.looptime
async def test_held_tasks_that_are_older_end_when_a_newer_one_is_dispatched() -> None:
    harness = harness_of(OnConflict.KEEP_NEWEST)
    older = add(harness, 1, suspend=True)
    newer = add(harness, 2)
    later = add(harness, 3, suspend=True)
    assert (older.stage, later.stage) == (TaskStage.HELD, TaskStage.HELD)
    harness.open()
    await turn()
    assert newer.stage is TaskStage.CLAIMING
    assert older.status.reason == "Superseded"
    assert later.stage is TaskStage.HELD


@pytest.mark.looptime
async def test_a_newer_task_stops_the_one_that_runs_and_waits_for_its_worker() -> None:
    harness = harness_of(OnConflict.CANCEL_RUNNING)
    first = await running(harness, 1)
    token = harness.token(first)
    second = add(harness, 2)
    assert (first.status.phase, first.status.reason) == (Phase.CANCELLED, "Superseded")
    await turn()
    assert [(one.kind, one.token) for one in harness.publisher.commands] == [
        (CommandKind.CANCEL, token)
    ]
    await written(harness)
    assert harness.dispatcher.published == 0
    harness.event(first, EventKind.CANCELLED, token=token)
    await turn()
    await written(harness)
    assert second.stage is TaskStage.PUBLISHED


@pytest.mark.looptime
async def test_a_task_is_rejected_while_another_runs_or_is_retried() -> None:
    harness = harness_of(OnConflict.REJECT)
    first = await running(harness, 1)
    second = add(harness, 2)
    assert (second.status.phase, second.status.reason) == (Phase.CANCELLED, "Rejected")
    harness.event(first, EventKind.FAILED, error=EventError(type="Boom", message="no"))
    third = add(harness, 3)
    assert third.status.reason == "Rejected"
    assert first.status.phase is Phase.RETRYING
    await asyncio.sleep(6)
    await written(harness)
    harness.event(first, EventKind.SUCCEEDED, attempt=2)
    await written(harness)
    assert add(harness, 4).stage is TaskStage.WAITING


@pytest.mark.looptime
async def test_another_operator_goes_on_with_the_claim_it_finds() -> None:
    """All of one second: the one that was dispatched is taken for the oldest."""
    for policy, ended in ((OnConflict.KEEP_NEWEST, []), (OnConflict.CANCEL_RUNNING, ["t1"])):
        harness = harness_of(policy)
        claimed = {"phase": "Running", "concurrencyKey": "k", "attempts": 1}
        first = add(harness, 1, status=claimed)
        add(harness, 0)
        names = [entry.task.name for entry in harness.states.latest.values()]
        assert len(names) == 2
        assert [first.task.name] * (first.status.phase is Phase.CANCELLED) == ended


@pytest.mark.looptime
async def test_a_changed_answer_applies_to_those_that_wait() -> None:
    harness = TaskHarness()
    first, second = add(harness, 1), add(harness, 2)
    harness.dispatcher.config = replace(
        harness.config, keys=ConcurrencyPolicy(on_conflict=OnConflict.KEEP_NEWEST)
    )
    assert first.status.reason == "Superseded"
    assert second.stage is TaskStage.WAITING
    harness.dispatcher.config = harness.config
    assert add(harness, 3).stage is second.stage is TaskStage.WAITING


ENDS = {"ends": EventKind.SUCCEEDED, "fails": EventKind.FAILED}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NEWEST),
    st.lists(st.sampled_from(["comes", "comes held", "resumes", *ENDS, "later"]), max_size=25),
)
def test_no_older_task_is_ever_dispatched_after_a_newer_one(
    policy: OnConflict, steps: list[str]
) -> None:
    async def live() -> None:
        harness = harness_of(policy)
        harness.open()
        order: list[int] = []
        number = 0
        for step in steps:
            entries = [harness.latest(uid) for uid in harness.entries]
            out = [one for one in entries if one.stage is TaskStage.PUBLISHED]
            held = [one for one in entries if one.task.spec.suspend]
            if step.startswith("comes"):
                number += 1
                add(harness, number, suspend=step == "comes held")
            elif step == "resumes" and held:
                add(harness, int(held[0].task.name[1:]), suspend=False)
            elif step in ENDS and out:
                error = None if step == "ends" else EventError(type="Boom", message="no")
                attempt = out[0].status.current_attempt
                harness.event(out[0], ENDS[step], attempt=attempt, error=error)
            elif step == "later":
                await asyncio.sleep(6)
            for _ in range(3):
                await turn()
                await written(harness)
                order.extend(int(one.message.task[1:]) for one in harness.publisher.published)
                harness.publisher.settle(Settled.CONFIRMED)
        assert order == sorted(order)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(live())
        assert not loop.problems
    finally:
        loop.close()
