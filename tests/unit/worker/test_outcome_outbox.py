"""Publishing until confirmed, through returns, losses and reconnects."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outgoing import OutgoingMessage, outcome_message
from taskqueue.worker.outcome_outbox import RETURNED_SECONDS, OutcomeOutbox
from tests.unit.worker.fakes import FakePublisher, turn

pytestmark = pytest.mark.looptime


class Ledger:
    """An outbox, and which messages were confirmed."""

    def __init__(self) -> None:
        self.outbox = OutcomeOutbox(asyncio.get_running_loop())
        self.confirmed: list[str] = []

    def publish(self, name: str) -> None:
        self.outbox.publish(message(name), lambda: self.confirmed.append(name))


def message(name: str) -> OutgoingMessage:
    return outcome_message(f"shop.q.{name}", name.encode())


async def test_a_confirm_is_reported_once() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    ledger.publish("a")
    assert ledger.outbox.outstanding == 1
    (published,) = publisher.settle()
    assert (published.exchange, published.key) == ("taskqueue.outcomes", "shop.q.a")
    assert ledger.confirmed == ["a"]
    assert ledger.outbox.outstanding == 0


@pytest.mark.parametrize("verdict", [Settled.RETURNED, Settled.UNKNOWN])
async def test_what_did_not_arrive_is_published_again_with_another_message_id(
    verdict: Settled,
) -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    ledger.publish("a")
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
    ledger.publish("early")
    ledger.outbox.attach(first.real)
    ledger.publish("lost")
    first.settle(Settled.UNKNOWN, "connection lost")
    ledger.outbox.detach()
    ledger.publish("late")
    await asyncio.sleep(60)
    assert not first.published
    ledger.outbox.attach(second.real)
    second.settle()
    assert sorted(ledger.confirmed) == ["early", "late", "lost"]


async def test_drained_waits_for_the_last_confirm() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    await ledger.outbox.wait_until_drained()
    ledger.publish("a")
    waiting = asyncio.create_task(ledger.outbox.wait_until_drained())
    publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
    await asyncio.sleep(11)
    assert not waiting.done()
    publisher.settle()
    await asyncio.wait_for(waiting, 1)


async def test_what_is_returned_is_given_up_only_when_the_worker_stops() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    ledger.publish("a")
    for _ in range(20):
        publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
        await asyncio.sleep(11)
    assert ledger.outbox.outstanding == 1
    ledger.outbox.give_up_returned()
    drained = asyncio.create_task(ledger.outbox.wait_until_drained())
    ledger.publish("b")
    stopped = asyncio.get_running_loop().time()
    while not drained.done():
        for verdict in (Settled.UNKNOWN, Settled.RETURNED):
            publisher.settle(verdict, "312 NO_ROUTE")
            await asyncio.sleep(11)
    assert RETURNED_SECONDS <= asyncio.get_running_loop().time() - stopped < RETURNED_SECONDS + 40
    assert (ledger.outbox.outstanding, ledger.confirmed) == (0, [])


async def test_what_is_unknown_is_never_given_up() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    ledger.publish("a")
    ledger.outbox.give_up_returned()
    for _ in range(20):
        publisher.settle(Settled.UNKNOWN, "refused")
        await asyncio.sleep(11)
    publisher.settle()
    assert ledger.confirmed == ["a"]


async def test_a_message_published_once_and_never_waited_for() -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.publish_once(message("nobody there"))
    ledger.outbox.attach(publisher.real)
    ledger.outbox.publish_once(message("a"))
    assert len(publisher.settle(Settled.UNKNOWN)) == 1
    await asyncio.sleep(60)
    assert not publisher.published
    assert ledger.outbox.outstanding == 0


async def test_a_missing_inbox_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    for name in ("a", "b"):
        ledger.publish(name)
    for _ in range(3):
        publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
        await asyncio.sleep(11)
    assert [record.getMessage() for record in caplog.records] == ["outcome.returned"]
