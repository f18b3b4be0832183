"""Publishing until confirmed, through returns, losses and reconnects."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from taskqueue.broker.events import CONTENT_TYPE
from taskqueue.broker.publisher import Settled
from taskqueue.broker.worker_messages import Outgoing, outcome_message
from taskqueue.worker.reporter import (
    AT_ONCE,
    GATHER_BYTES,
    GATHER_LIMIT,
    GATHER_SECONDS,
    Reporter,
)
from tests.unit.worker.fakes import FakePublisher, turn

pytestmark = pytest.mark.looptime


class Ledger:
    """A reporter, and how often each message was said to be confirmed."""

    def __init__(self) -> None:
        self.reporter = Reporter(asyncio.get_running_loop())
        self.confirmed: list[str] = []

    def report(self, name: str) -> None:
        self.reporter.report(message(name), lambda: self.confirmed.append(name))


def message(name: str) -> Outgoing:
    return outcome_message(f"shop.q.{name}", name.encode())


async def test_confirmed_once_is_told_once() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    ledger.report("a")
    assert ledger.reporter.outstanding == 1
    (published,) = publisher.settle()
    assert (published.exchange, published.key) == ("taskqueue.outcomes", "shop.q.a")
    assert ledger.confirmed == ["a"]
    assert ledger.reporter.outstanding == 0


@pytest.mark.parametrize("verdict", [Settled.RETURNED, Settled.UNKNOWN])
async def test_what_did_not_arrive_is_published_again_with_another_message_id(
    verdict: Settled,
) -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    ledger.report("a")
    ids = set()
    for _ in range(3):
        (published,) = publisher.settle(verdict, "312 NO_ROUTE")
        ids.add(published.properties.message_id)
        await turn()
        assert not publisher.published, "not at once: the broker would be hammered"
        await asyncio.sleep(11)
    assert ledger.confirmed == []
    publisher.settle()
    assert ledger.confirmed == ["a"]
    assert len(ids) == 3


async def test_without_a_publisher_everything_waits_for_the_next_one() -> None:
    ledger, first, second = Ledger(), FakePublisher(), FakePublisher()
    ledger.report("early")
    ledger.reporter.attach(first.real)
    ledger.report("lost")
    first.settle(Settled.UNKNOWN, "connection lost")
    ledger.reporter.detach()
    ledger.report("late")
    await asyncio.sleep(60)
    assert not first.published
    ledger.reporter.attach(second.real)
    second.settle()
    assert sorted(ledger.confirmed) == ["early", "late", "lost"]


async def test_drained_waits_for_the_last_confirm() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    await ledger.reporter.drained()
    ledger.report("a")
    waiting = asyncio.create_task(ledger.reporter.drained())
    publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
    await asyncio.sleep(11)
    assert not waiting.done()
    publisher.settle()
    await asyncio.wait_for(waiting, 1)


async def test_a_mention_is_published_once_and_never_waited_for() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.mention(message("nobody there"))
    ledger.reporter.attach(publisher.real)
    ledger.reporter.mention(message("a"))
    assert len(publisher.settle(Settled.UNKNOWN)) == 1
    await asyncio.sleep(60)
    assert not publisher.published
    assert ledger.reporter.outstanding == 0


async def test_a_missing_inbox_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    for name in ("a", "b"):
        ledger.report(name)
    for _ in range(3):
        publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
        await asyncio.sleep(11)
    assert [record.getMessage() for record in caplog.records] == ["outcome.unroutable"]


# Many at once.


def outcomes(ledger: Ledger, count: int, *, key: str = "shop.q.task.succeeded") -> list[str]:
    names = [f"{number}" for number in range(len(ledger.confirmed), count)]
    for name in names:
        told = outcome_message(key, b'{"n":%s}' % name.encode())
        ledger.reporter.report(told, partial(ledger.confirmed.append, name))
    return names


async def test_a_few_leave_each_at_once() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    outcomes(ledger, AT_ONCE)
    assert [each.body for each in publisher.published] == [b'{"n":%d}' % n for n in range(AT_ONCE)]


async def test_more_gather_until_the_next_confirm_and_are_confirmed_together() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    names = outcomes(ledger, AT_ONCE + 3)
    assert len(publisher.published) == AT_ONCE
    assert ledger.reporter.outstanding == AT_ONCE + 3
    first = publisher.published.pop(0)
    first.on_settled(Settled.CONFIRMED, "")
    told = publisher.published[-1]
    assert told.properties.content_type == "application/cloudevents-batch+json"
    assert (told.exchange, told.key) == ("taskqueue.outcomes", "shop.q.task.succeeded")
    assert json.loads(told.body) == [{"n": AT_ONCE}, {"n": AT_ONCE + 1}, {"n": AT_ONCE + 2}]
    assert ledger.confirmed == ["0"]
    publisher.settle()
    assert ledger.confirmed == names
    assert ledger.reporter.outstanding == 0


async def test_they_do_not_wait_for_a_broker_that_is_slow() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    outcomes(ledger, AT_ONCE + 2)
    await asyncio.sleep(GATHER_SECONDS + 0.001)
    assert len(publisher.published) == AT_ONCE + 1
    await asyncio.sleep(60)
    assert len(publisher.published) == AT_ONCE + 1


async def test_a_single_one_that_waited_is_no_batch() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    outcomes(ledger, AT_ONCE + 1)
    await asyncio.sleep(1)
    told = publisher.published[-1]
    assert (told.body, told.properties.content_type) == (b'{"n":4}', CONTENT_TYPE)


async def test_what_leaves_together_has_bounds_and_one_key() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    outcomes(ledger, AT_ONCE + GATHER_LIMIT + 1)
    assert len(json.loads(publisher.published[-1].body)) == GATHER_LIMIT
    ledger.report("failed")
    assert publisher.published[-1].body == b'{"n":%d}' % (AT_ONCE + GATHER_LIMIT)
    for name in ("large", "larger"):
        large = outcome_message("shop.q.large", name.encode() * (GATHER_BYTES // 6))
        ledger.reporter.report(large, lambda: None)
    await asyncio.sleep(1)
    assert all(
        each.properties.content_type == CONTENT_TYPE or len(each.body) <= GATHER_BYTES + 100
        for each in publisher.published
    )


@pytest.mark.parametrize("verdict", [Settled.RETURNED, Settled.UNKNOWN])
async def test_each_of_a_batch_that_did_not_arrive_is_published_again(verdict: Settled) -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    names = outcomes(ledger, AT_ONCE + 3)
    await asyncio.sleep(1)
    publisher.settle(verdict, "nobody there")
    assert not publisher.published
    await asyncio.sleep(11)
    assert len(publisher.published) == len(names)
    publisher.settle()
    assert sorted(ledger.confirmed) == names


async def test_what_had_gathered_when_the_publisher_was_lost_goes_to_the_next() -> None:
    ledger, first, second = Ledger(), FakePublisher(), FakePublisher()
    ledger.reporter.attach(first.real)
    names = outcomes(ledger, AT_ONCE + 3)
    ledger.reporter.detach()
    first.settle(Settled.UNKNOWN, "connection lost")
    await asyncio.sleep(1)
    assert not first.published
    ledger.reporter.attach(second.real)
    second.settle()
    assert sorted(ledger.confirmed) == names
    await ledger.reporter.drained()


async def test_what_is_no_outcome_never_gathers() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.reporter.attach(publisher.real)
    outcomes(ledger, AT_ONCE)
    letter = Outgoing(exchange="taskqueue.dead", key="shop.q", body=b"x", content_type=None)
    ledger.reporter.report(letter, lambda: None)
    assert publisher.published[-1].exchange == "taskqueue.dead"
