"""The dispatcher with spec.flow and limits of keys: what is published when, and what Tasks say."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.flow import (
    ConcurrencyPolicy,
    FairnessPolicy,
    FlowPolicy,
    PriorityAgeing,
    RateLimit,
)
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime

TEAMS = FairnessPolicy(label="team", weights={"a": 3})
SLOW = RateLimit(name="api", attempts=6, period_seconds=60)


def add(harness: TaskHarness, name: str, team: str, **spec: object) -> TrackedTask:
    raw = raw_task(name, **spec)  # type: ignore[arg-type]
    raw["metadata"]["labels"] = {"team": team}
    return harness.show(raw)


async def times_of_publishes(harness: TaskHarness, seconds: float) -> list[tuple[float, str]]:
    """Let workers end whatever is published at once; return when that was, and its name."""
    loop = asyncio.get_running_loop()
    times: list[tuple[float, str]] = []
    end = loop.time() + seconds
    while loop.time() < end:
        for one in harness.publisher.published:
            times.append((loop.time(), one.message.task))
            entry = harness.entries[one.message.uid]
            asyncio.get_running_loop().call_soon(harness.event, entry, EventKind.SUCCEEDED)
        harness.publisher.settle(Settled.CONFIRMED)
        await asyncio.sleep(0.25)
    return times


async def test_teams_get_their_shares_of_a_window_of_one() -> None:
    harness = TaskHarness(max_published=1, flow=FlowPolicy(fairness=TEAMS))
    for number in range(40):
        add(harness, f"a{number}", "a")
        add(harness, f"b{number}", "b")
    harness.open()
    times = await times_of_publishes(harness, 10)
    names = [name for _, name in times][:40]
    assert abs(sum(name[0] == "a" for name in names) - 30) <= 1


async def test_no_more_is_published_than_a_rate_limit_lets_pass() -> None:
    harness = TaskHarness(flow=FlowPolicy(rate_limits=(SLOW,)))
    harness.dispatcher.slots = 100
    harness.open()
    for number in range(20):
        harness.add(f"t{number}")
    assert harness.dispatcher.limited_by == "api"
    times = [at for at, _ in await times_of_publishes(harness, 125)]
    assert len(times) == 12
    assert all(after - before >= 9.5 for before, after in itertools.pairwise(times))


async def test_payloads_that_are_read_first_make_no_burst() -> None:
    harness = TaskHarness(payload_budget=0, flow=FlowPolicy(rate_limits=(SLOW,)))
    harness.dispatcher.slots = 100
    for number in range(20):
        harness.show(harness.store(raw_task(f"t{number}")))
    harness.open()
    times = [at for at, _ in await times_of_publishes(harness, 65)]
    assert len(times) == 6
    assert all(after - before >= 9.5 for before, after in itertools.pairwise(times))


async def test_a_team_that_its_limit_holds_back_does_not_hold_back_others() -> None:
    each = replace(SLOW, per_key=True)
    harness = TaskHarness(flow=FlowPolicy(fairness=TEAMS, rate_limits=(each,)))
    harness.dispatcher.slots = 100
    harness.open()
    for number in range(5):
        add(harness, f"a{number}", "a")
    await asyncio.sleep(15)
    assert harness.publisher.names == ["a0"]
    add(harness, "b0", "b")
    await turn()
    assert harness.publisher.names == ["a0", "b0"]


async def test_a_task_whose_key_is_taken_uses_no_attempt_of_a_rate_limit() -> None:
    harness = TaskHarness(flow=FlowPolicy(rate_limits=(replace(SLOW, burst=2),)))
    harness.dispatcher.slots = 100
    for name in ("first", "second"):
        harness.add(name, concurrencyKey="k")
    await asyncio.sleep(60)
    harness.open()
    await turn()
    harness.add("other")
    await turn()
    assert harness.publisher.names == ["other"]  # "first" waits for the write of its claim
    assert harness.entries["uid-second"].status.reason == "ConcurrencyLimit"


async def test_tasks_above_the_most_that_wait_are_blocked_until_their_turn() -> None:
    harness = TaskHarness(max_published=1, flow=FlowPolicy(max_waiting=1))
    entries = [harness.add(f"t{number}", created=number) for number in range(3)]
    assert [entry.status.phase for entry in entries] == [
        Phase.PENDING,
        Phase.BLOCKED,
        Phase.BLOCKED,
    ]
    assert entries[1].status.reason == "QueueFull"
    assert harness.dispatcher.waiting == 1
    await asyncio.sleep(3)
    assert harness.writer.phases == ["Blocked", "Blocked"]
    harness.writer.writes[0].succeed()
    harness.writer.writes[1].succeed()
    harness.open()
    names = [name for _, name in await times_of_publishes(harness, 5)]
    assert names == ["t0", "t1", "t2"]
    assert harness.writer.phases[2:] == ["Succeeded"] * 3


async def test_a_blocked_task_that_is_published_is_blocked_no_more() -> None:
    harness = TaskHarness(max_published=2, flow=FlowPolicy(max_waiting=1))
    harness.add("first")
    second = harness.add("second")
    assert second.status.reason == "QueueFull"
    harness.open()
    await turn()
    assert (second.stage, second.status.phase) == (TaskStage.PUBLISHED, Phase.PENDING)


async def test_those_that_wait_do_so_by_a_changed_policy() -> None:
    harness = TaskHarness(max_published=1)
    patient = harness.add("patient", created=0.0)
    harness.add("urgent", created=1000.0, priority=5)
    harness.dispatcher.config = replace(
        harness.config, flow=FlowPolicy(ageing=PriorityAgeing(100, 1))
    )
    harness.open()
    await turn()
    assert harness.publisher.names == ["patient"]
    assert patient.stage is TaskStage.PUBLISHED
    harness.dispatcher.config = harness.config
    assert harness.dispatcher.waiting == 1


async def test_a_burst_of_one_key_wants_one_worker() -> None:
    harness = TaskHarness(keys=ConcurrencyPolicy(overrides=(("wide/", 3),)))
    for number in range(50):
        harness.add(f"k{number}", concurrencyKey="k")
        harness.add(f"w{number}", concurrencyKey="wide/1")
    harness.add("other")
    dispatcher = harness.dispatcher
    assert (dispatcher.waiting, dispatcher.excess) == (101, 49 + 47)
    harness.open()
    await asyncio.sleep(1)
    assert dispatcher.waiting + dispatcher.published - dispatcher.excess == 5


async def test_each_key_has_the_limit_of_the_longest_prefix_that_fits() -> None:
    overrides = (("tenant/", 2), ("tenant/big/", 4))
    harness = TaskHarness(keys=ConcurrencyPolicy(overrides=overrides))
    harness.open()
    for number in range(6):
        for key in ("tenant/small", "tenant/big/x", "other"):
            harness.add(f"{key}-{number}".replace("/", "."), concurrencyKey=key)
    await turn()
    claimed = [write.status["concurrencyKey"] for write in harness.writer.writes]
    assert {key: claimed.count(key) for key in claimed} == {
        "tenant/small": 2,
        "tenant/big/x": 4,
        "other": 1,
    }
