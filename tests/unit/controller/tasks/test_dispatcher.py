"""The dispatcher: what is published when, and what happens to what is not accepted."""

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.dispatch_queue import MIN_WINDOW, FinishRate
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.model.task import RetryBackoff
from tests.unit.controller.fakes import Engine, turn

pytestmark = pytest.mark.looptime


async def test_nothing_is_published_before_the_queue_is_declared() -> None:
    engine = Engine()
    engine.add("a")
    await turn()
    assert not engine.publisher.published
    engine.open()
    await turn()
    assert engine.publisher.names == ["a"]


async def test_nothing_is_published_after_a_close_and_what_was_stays_so() -> None:
    engine = Engine()
    engine.open()
    before = engine.add("before")
    await turn()
    engine.dispatcher.close()
    after = engine.add("after")
    await turn()
    assert engine.publisher.names == ["before"]
    assert (before.stage, after.stage) == (TaskStage.PUBLISHED, TaskStage.WAITING)


async def test_nothing_is_published_without_a_taskqueue() -> None:
    engine = Engine()
    engine.dispatcher.config = None
    engine.open()
    engine.add("a")
    await turn()
    assert not engine.publisher.published


@pytest.mark.parametrize(
    ("max_published", "slots", "window"),
    [(5, 0, 5), (1000, 0, MIN_WINDOW), (1000, 100, 200), (150, 100, 150)],
)
async def test_the_window_is_never_exceeded(max_published: int, slots: int, window: int) -> None:
    engine = Engine(max_published=max_published)
    engine.dispatcher.slots = slots
    engine.open()
    entries = [engine.add(f"t{number}") for number in range(400)]
    await asyncio.sleep(1)
    assert len(engine.publisher.published) == window
    assert (engine.dispatcher.published, engine.dispatcher.waiting) == (window, 400 - window)
    engine.publisher.settle(Settled.CONFIRMED)
    await asyncio.sleep(1)
    assert not engine.publisher.published  # a confirm makes no room, an outcome does
    done = [entry for entry in entries if entry.stage is TaskStage.PUBLISHED][:3]
    for entry in done:
        engine.dispatcher.withdraw(entry, finished=True)
    await asyncio.sleep(1)
    assert len(engine.publisher.published) == 3
    assert engine.dispatcher.published == window


async def test_what_finished_lately_widens_the_window() -> None:
    engine = Engine()
    engine.open()
    for number in range(400):
        engine.add(f"t{number}")
    for turns in range(10):
        await turn()
        for entry in [
            one for one in engine.dispatcher.entries() if one.stage is TaskStage.PUBLISHED
        ]:
            engine.dispatcher.withdraw(entry, finished=True)
        for number in range(200):
            engine.add(f"more-{turns}-{number}")
    await turn()
    assert engine.dispatcher.published > MIN_WINDOW


async def test_priority_then_age_then_arrival() -> None:
    engine = Engine(max_published=1)
    for name, priority, created in (
        ("third", 0, 1.0),
        ("fourth", 0, 2.0),
        ("fifth", 0, 2.0),
        ("first", 9, 3.0),
        ("sixth", -9, 0.0),
        ("second", 9, 4.0),
    ):
        engine.add(name, priority=priority, created=created)
    engine.open()
    order = []
    for _ in range(6):
        await turn()
        (name,) = engine.publisher.names
        order.append(name)
        engine.publisher.settle(Settled.CONFIRMED)
        engine.dispatcher.withdraw(engine.entries[f"uid-{name}"], finished=True)
    assert order == ["first", "second", "third", "fourth", "fifth", "sixth"]


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_what_was_not_accepted_goes_out_again_with_the_same_token(verdict: Settled) -> None:
    engine = Engine()
    engine.open()
    entry = engine.add("a")
    await turn()
    first = engine.publisher.published[0].message
    engine.publisher.settle(verdict, "why")
    assert engine.dispatcher.waiting == 1
    assert engine.missing == (1 if verdict is Settled.RETURNED else 0)
    await turn()
    assert not engine.publisher.published  # the broker gets a moment
    await asyncio.sleep(0.6)
    again = engine.publisher.published[0].message
    assert (again.token, again.attempt) == (first.token, first.attempt)
    assert entry.stage is TaskStage.PUBLISHED


async def test_a_late_word_about_an_earlier_attempt_changes_nothing() -> None:
    engine = Engine()
    engine.open()
    entry = engine.add("a")
    await turn()
    unsettled = engine.publisher.published.pop()
    engine.failed(entry)  # its outcome is faster than the broker's word about the publish
    await asyncio.sleep(6)
    assert entry.stage is TaskStage.PUBLISHED
    assert engine.publisher.published.pop().message.attempt == 2
    unsettled.settle(Settled.UNKNOWN, "connection lost")
    await asyncio.sleep(1)
    assert not engine.publisher.published


async def test_a_finished_task_is_not_published_again_over_an_unknown_fate() -> None:
    engine = Engine()
    engine.open()
    entry = engine.add("a")
    await turn()
    engine.dispatcher.withdraw(entry, finished=True)
    entry.stage = TaskStage.FINISHED
    engine.publisher.settle(Settled.UNKNOWN, "connection lost")
    await asyncio.sleep(1)
    assert not engine.publisher.published
    assert engine.dispatcher.empty


async def test_a_broker_that_lost_its_queue_gets_all_of_it_again() -> None:
    engine = Engine()
    engine.open()
    for name in "abc":
        engine.add(name)
    await turn()
    tokens = {one.message.task: one.message.token for one in engine.publisher.published}
    engine.publisher.settle(Settled.CONFIRMED)
    assert engine.dispatcher.republish_all() == 3
    await turn()
    again = {one.message.task: one.message.token for one in engine.publisher.published}
    assert again == tokens
    assert engine.dispatcher.republish_all() == 3


async def test_a_task_that_waits_for_its_retry_waits_outside_the_window() -> None:
    engine = Engine(max_published=1, backoff=RetryBackoff(30.0, 1.0, 30.0, 0.0))
    later = await engine.published("later")
    engine.publisher.published.clear()
    engine.failed(later)
    engine.add("now")
    await asyncio.sleep(29)
    assert later.stage is TaskStage.HELD
    assert engine.publisher.names == ["now"]
    assert (engine.dispatcher.waiting, engine.dispatcher.published) == (0, 1)
    engine.event(engine.entries["uid-now"], EventKind.SUCCEEDED)
    await asyncio.sleep(2)
    assert engine.publisher.names == ["now", "later"]


async def test_a_deleted_task_that_waited_for_its_retry_never_comes_back() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.failed(entry)
    await engine.delete(entry)
    await asyncio.sleep(10)
    assert not engine.publisher.published
    assert engine.dispatcher.empty


def test_the_rate_forgets_after_five_seconds() -> None:
    rate = FinishRate()
    for at in (100.0, 100.9, 102.0):
        rate.add(at)
    assert [rate.recent(at) for at in (102.5, 105.0, 105.1, 107.1)] == [3, 3, 1, 0]
