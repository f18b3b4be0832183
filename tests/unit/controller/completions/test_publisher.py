"""Completion events are published until confirmed, and kept within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson
import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.controller.completions import publisher as module
from taskqueue.controller.completions.publisher import (
    OPEN_SECONDS,
    REFUSED_PAUSE_SECONDS,
    TRIES,
    CompletionPublisher,
)
from taskqueue.controller.metrics import COMPLETIONS_DROPPED, COMPLETIONS_PUBLISHED
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from tests.unit.controller.fakes import turn

pytestmark = pytest.mark.looptime

KEY = ("shop", "q")


class FakePublisher:
    """Keeps what is published; the test settles it."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting: list[tuple[str, OnSettled]] = []
        self.ids: list[str] = []
        self.refuses_to_encode = False

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        on_settled: OnSettled,
        *,
        mandatory: bool = True,
    ) -> None:
        assert (exchange, mandatory) == ("taskqueue.events", False)
        if self.refuses_to_encode:
            raise ValueError("too long")
        event = orjson.loads(body)
        namespace, queue = key.split(".")[:2]
        assert event["source"] == f"/namespaces/{namespace}/taskqueues/{queue}"
        assert properties.message_id not in self.ids
        self.ids.append(properties.message_id)
        self.waiting.append((event["id"], on_settled))

    @property
    def published(self) -> list[str]:
        return [name for name, _ in self.waiting]

    def settle(self, verdict: Settled = Settled.CONFIRMED, text: str = "") -> None:
        waiting, self.waiting = self.waiting, []
        for _, on_settled in waiting:
            on_settled(verdict, text)

    def close(self) -> None:
        self.closed.set_result("lost")
        self.settle(Settled.UNKNOWN, "lost")


class Case:
    """An publisher, and what it called."""

    def __init__(self, **options: Any) -> None:
        self.publisher = CompletionPublisher(**options)
        self.published: list[str] = []

    def end(
        self,
        name: str,
        publisher: FakePublisher | None,
        *,
        reported: bool = True,
        queue: str = "q",
    ) -> None:
        task = Task(
            namespace="shop",
            name=name,
            uid=name,
            generation=1,
            created=0.0,
            spec=TaskSpec(queue=queue, handler="h"),
        )
        phase = Phase.SUCCEEDED if reported else Phase.CANCELLED
        self.publisher.publish_task(
            task,
            TaskState(phase=phase, attempts=1, completion_time=1.0),
            reported=reported,
            publisher=cast("Publisher | None", publisher),
            on_published=lambda: self.published.append(name),
        )

    def open(self, publisher: FakePublisher, queue: str = "q") -> None:
        self.publisher.publish_kept(("shop", queue), cast(Publisher, publisher))


def dropped(why: str) -> Callable[[], float]:
    """Return how many were dropped since, for this reason."""
    counter = COMPLETIONS_DROPPED.labels(why)
    before = counter._value.get()
    return lambda: counter._value.get() - before


async def test_an_end_is_announced_once_confirmed() -> None:
    case, publisher = Case(), FakePublisher()
    before = COMPLETIONS_PUBLISHED._value.get()
    case.end("a", publisher)
    assert publisher.published == ["a.1"]
    assert case.published == []
    publisher.settle()
    assert case.published == ["a"]
    assert COMPLETIONS_PUBLISHED._value.get() == before + 1


async def test_a_reported_end_is_left_to_its_outcome_when_the_publisher_is_lost() -> None:
    case, publisher = Case(), FakePublisher()
    case.end("a", publisher)
    publisher.close()
    again = FakePublisher()
    case.open(again)
    await turn()
    assert (again.published, case.published) == ([], [])


async def test_any_other_end_is_published_again_when_the_broker_is_back() -> None:
    case, publisher = Case(), FakePublisher()
    case.end("a", publisher, reported=False)
    publisher.close()
    again = FakePublisher()
    case.open(again)
    assert again.published == ["a.1"]
    again.settle()
    assert case.published == ["a"]


@pytest.mark.parametrize("reported", [True, False])
async def test_an_end_before_the_broker_is_known_waits_for_it(reported: bool) -> None:
    case, publisher = Case(), FakePublisher()
    case.end("a", None, reported=reported)
    case.open(publisher, "other")
    assert publisher.published == []
    case.open(publisher)
    publisher.settle()
    assert case.published == ["a"]
    case.open(publisher)
    assert publisher.published == []


async def test_a_queue_that_never_opens_keeps_no_outcome_for_ever() -> None:
    case, publisher = Case(), FakePublisher()
    lost = dropped("unopened")
    case.end("a", None)
    case.end("mine", None, reported=False)
    await asyncio.sleep(OPEN_SECONDS / 2)
    case.end("b", None)
    await asyncio.sleep(OPEN_SECONDS / 2 + 1)
    assert (case.published, lost()) == (["a"], 1)
    case.open(publisher)
    assert publisher.published == ["b.1", "mine.1"]
    await asyncio.sleep(2 * OPEN_SECONDS)
    assert (case.published, lost()) == (["a"], 1)


async def test_each_waits_its_own_time_for_its_queue() -> None:
    case, publisher = Case(), FakePublisher()
    case.end("opened", None)
    case.open(publisher)
    publisher.settle()
    await asyncio.sleep(OPEN_SECONDS / 2)
    case.end("later", None)
    await asyncio.sleep(OPEN_SECONDS / 2 + 1)
    assert case.published == ["opened"]


async def test_many_kept_ends_leave_other_work_its_turn() -> None:
    case, publisher = Case(), FakePublisher()
    for number in range(300):
        case.end(f"t{number}", None, reported=False)
    case.open(publisher)
    assert len(publisher.published) == 128
    await turn()
    assert publisher.published == [f"t{number}.1" for number in range(300)]


async def test_what_is_left_of_the_kept_waits_for_the_next_publisher() -> None:
    case, publisher = Case(), FakePublisher()
    for number in range(200):
        case.end(f"t{number}", None, reported=False)
    case.open(publisher)
    publisher.close()
    await turn()
    again = FakePublisher()
    case.open(again)
    await turn()
    assert len(again.published) == 200


async def test_the_queue_that_piles_up_loses_its_oldest() -> None:
    case, publisher = Case(kept_limit=3), FakePublisher()
    lost = dropped("overflow")
    case.end("other", None, reported=False, queue="small")
    for name in "abcd":
        case.end(name, None, reported=False)
    assert lost() == 2
    case.open(publisher)
    case.open(publisher, "small")
    assert publisher.published == ["c.1", "d.1", "other.1"]


async def test_reported_ends_are_never_dropped_for_room() -> None:
    case, publisher = Case(kept_limit=1), FakePublisher()
    for name in "abc":
        case.end(name, None)
    case.open(publisher)
    assert len(publisher.published) == 3


async def test_a_refused_event_is_tried_again_after_a_pause() -> None:
    case, publisher = Case(), FakePublisher()
    case.end("a", publisher)
    publisher.settle(Settled.UNKNOWN, "its queue is full")
    await turn()
    assert publisher.published == []
    await asyncio.sleep(REFUSED_PAUSE_SECONDS + 0.01)
    assert publisher.published == ["a.1"]
    publisher.settle()
    assert case.published == ["a"]


async def test_a_spectators_full_queue_holds_up_no_outcome_for_long() -> None:
    case, publisher = Case(), FakePublisher()
    lost = dropped("refused")
    case.end("a", publisher)
    for _ in range(TRIES):
        assert case.published == []
        publisher.settle(Settled.UNKNOWN, "its queue is full")
        await asyncio.sleep(REFUSED_PAUSE_SECONDS + 0.01)
    assert (case.published, lost()) == (["a"], 1)
    assert publisher.published == []


async def test_few_refused_events_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_LIMIT", 2)
    case, publisher = Case(), FakePublisher()
    for name in "abcd":
        case.end(name, publisher)
    publisher.settle(Settled.UNKNOWN, "its queue is full")
    assert case.published == ["c", "d"]
    await asyncio.sleep(REFUSED_PAUSE_SECONDS + 0.01)
    publisher.settle()
    assert case.published == ["c", "d", "a", "b"]
    case.end("e", publisher)
    publisher.settle(Settled.UNKNOWN, "its queue is full")
    assert "e" not in case.published  # there is room again


async def test_a_publisher_lost_in_the_pause_counts_as_lost() -> None:
    case, publisher = Case(), FakePublisher()
    case.end("mine", publisher, reported=False)
    case.end("theirs", publisher)
    publisher.settle(Settled.UNKNOWN, "its queue is full")
    publisher.close()
    await asyncio.sleep(REFUSED_PAUSE_SECONDS + 0.01)
    assert (case.published, publisher.published) == ([], [])
    again = FakePublisher()
    case.open(again)
    assert again.published == ["mine.1"]


async def test_what_cannot_be_published_at_all_holds_up_nothing() -> None:
    case, publisher = Case(), FakePublisher()
    lost = dropped("unpublishable")
    publisher.refuses_to_encode = True
    case.end("a", publisher)
    assert (case.published, lost()) == (["a"], 1)


async def test_drain_waits_for_confirms_within_its_time() -> None:
    case, publisher = Case(), FakePublisher()
    await case.publisher.drain(5)
    case.end("a", publisher, reported=False)
    draining = asyncio.create_task(case.publisher.drain(5))
    await turn()
    assert not draining.done()
    publisher.settle()
    await draining
    assert asyncio.get_running_loop().time() < 1
    case.end("b", publisher)
    await case.publisher.drain(5)
    assert asyncio.get_running_loop().time() >= 5
