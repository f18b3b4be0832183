"""The dispatcher: what is published when, and what happens to what is not accepted."""

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.published_attempts import MIN_WINDOW, FinishRate
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.model.task import RetryBackoff
from tests.unit.controller.fakes import TaskHarness, turn

pytestmark = pytest.mark.looptime


async def test_nothing_is_published_before_the_queue_is_declared() -> None:
    harness = TaskHarness()
    harness.add("a")
    await turn()
    assert not harness.publisher.published
    harness.open()
    await turn()
    assert harness.publisher.names == ["a"]


async def test_nothing_is_published_after_a_close_and_what_was_stays_so() -> None:
    harness = TaskHarness()
    harness.open()
    before = harness.add("before")
    await turn()
    harness.dispatcher.close()
    after = harness.add("after")
    await turn()
    assert harness.publisher.names == ["before"]
    assert (before.stage, after.stage) == (TaskStage.PUBLISHED, TaskStage.WAITING)


async def test_nothing_is_published_while_outcomes_of_the_namespace_cannot_be_recorded() -> None:
    harness = TaskHarness()
    harness.writer.clogged |= {"shop"}
    harness.open()
    harness.add("a")
    await asyncio.sleep(60)
    assert not harness.publisher.published
    harness.writer.clogged -= {"shop"}
    await asyncio.sleep(1.1)
    assert harness.publisher.names == ["a"]


async def test_nothing_is_published_without_a_taskqueue() -> None:
    harness = TaskHarness()
    harness.dispatcher.config = None
    harness.open()
    harness.add("a")
    await turn()
    assert not harness.publisher.published


@pytest.mark.parametrize(
    ("max_published", "slots", "window"),
    [(5, 0, 5), (1000, 0, MIN_WINDOW), (1000, 100, 200), (150, 100, 150)],
)
async def test_the_window_is_never_exceeded(max_published: int, slots: int, window: int) -> None:
    harness = TaskHarness(max_published=max_published)
    harness.dispatcher.slots = slots
    harness.open()
    entries = [harness.add(f"t{number}") for number in range(400)]
    await asyncio.sleep(1)
    assert len(harness.publisher.published) == window
    assert (harness.dispatcher.published, harness.dispatcher.waiting) == (window, 400 - window)
    harness.publisher.settle(Settled.CONFIRMED)
    await asyncio.sleep(1)
    assert not harness.publisher.published  # a confirm makes no room, an outcome does
    done = [entry for entry in entries if entry.stage is TaskStage.PUBLISHED][:3]
    for entry in done:
        harness.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(1)
    assert len(harness.publisher.published) == 3
    assert harness.dispatcher.published == window


async def test_what_finished_lately_widens_the_window() -> None:
    harness = TaskHarness()
    harness.open()
    for number in range(400):
        harness.add(f"t{number}")
    for turns in range(10):
        await turn()
        published = [one for one in harness.entries.values() if one.stage is TaskStage.PUBLISHED]
        for entry in published:
            harness.event(entry, EventKind.SUCCEEDED)
        for number in range(200):
            harness.add(f"more-{turns}-{number}")
    await turn()
    assert harness.dispatcher.published > MIN_WINDOW


async def test_priority_then_age_then_arrival() -> None:
    harness = TaskHarness(max_published=1)
    for name, priority, created in (
        ("third", 0, 1.0),
        ("fourth", 0, 2.0),
        ("fifth", 0, 2.0),
        ("first", 9, 3.0),
        ("sixth", -9, 0.0),
        ("second", 9, 4.0),
    ):
        harness.add(name, priority=priority, created=created)
    harness.open()
    order = []
    for _ in range(6):
        await turn()
        (name,) = harness.publisher.names
        order.append(name)
        harness.publisher.settle(Settled.CONFIRMED)
        harness.event(harness.entries[f"uid-{name}"], EventKind.SUCCEEDED)
    assert order == ["first", "second", "third", "fourth", "fifth", "sixth"]


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_unconfirmed_publish_is_repeated_with_the_same_token(verdict: Settled) -> None:
    harness = TaskHarness()
    harness.open()
    entry = harness.add("a")
    await turn()
    first = harness.publisher.published[0].message
    harness.publisher.settle(verdict, "why")
    assert harness.dispatcher.waiting == 1
    assert harness.missing == (1 if verdict is Settled.RETURNED else 0)
    await turn()
    assert not harness.publisher.published  # the broker gets a moment
    await asyncio.sleep(0.6)
    again = harness.publisher.published[0].message
    assert (again.token, again.attempt) == (first.token, first.attempt)
    assert entry.stage is TaskStage.PUBLISHED


async def test_a_late_confirm_of_an_earlier_attempt_changes_nothing() -> None:
    harness = TaskHarness()
    harness.open()
    entry = harness.add("a")
    await turn()
    unsettled = harness.publisher.published.pop()
    harness.failed(entry)  # its outcome is faster than the broker's word about the publish
    await asyncio.sleep(6)
    assert entry.stage is TaskStage.PUBLISHED
    assert harness.publisher.published.pop().message.attempt == 2
    unsettled.settle(Settled.UNKNOWN, "connection lost")
    await asyncio.sleep(1)
    assert not harness.publisher.published


async def test_a_finished_task_is_not_published_again_after_an_unknown_settlement() -> None:
    harness = TaskHarness()
    harness.open()
    entry = harness.add("a")
    await turn()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.publisher.settle(Settled.UNKNOWN, "connection lost")
    await asyncio.sleep(1)
    assert not harness.publisher.published
    assert harness.dispatcher.is_empty


async def test_a_broker_that_lost_its_queue_gets_all_of_it_again() -> None:
    harness = TaskHarness()
    harness.open()
    for name in "abc":
        harness.add(name)
    await turn()
    tokens = {one.message.task: one.message.token for one in harness.publisher.published}
    harness.publisher.settle(Settled.CONFIRMED)
    assert harness.dispatcher.republish_all() == 3
    await turn()
    again = {one.message.task: one.message.token for one in harness.publisher.published}
    assert again == tokens
    assert harness.dispatcher.republish_all() == 3


async def test_a_task_that_waits_for_its_retry_waits_outside_the_window() -> None:
    harness = TaskHarness(max_published=1, backoff=RetryBackoff(30.0, 1.0, 30.0, 0.0))
    later = await harness.published("later")
    harness.publisher.published.clear()
    harness.failed(later)
    harness.add("now")
    await asyncio.sleep(29)
    assert later.stage is TaskStage.HELD
    assert harness.publisher.names == ["now"]
    assert (harness.dispatcher.waiting, harness.dispatcher.published) == (0, 1)
    harness.event(harness.entries["uid-now"], EventKind.SUCCEEDED)
    await asyncio.sleep(2)
    assert harness.publisher.names == ["now", "later"]


async def test_a_deleted_task_that_waited_for_its_retry_never_comes_back() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.failed(entry)
    await harness.delete(entry)
    await asyncio.sleep(10)
    assert not harness.publisher.published
    assert harness.dispatcher.is_empty


def test_the_finish_rate_covers_five_seconds() -> None:
    rate = FinishRate()
    for at in (100.0, 100.9, 102.0):
        rate.add(at)
    assert [rate.recent(at) for at in (102.5, 105.0, 105.1, 107.1)] == [3, 3, 1, 0]
