"""Publishing until confirmed, through returns, losses and reconnects."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outgoing import OutgoingMessage, outcome_message
from taskqueue.limits import BATCH_BYTES, BATCH_EVENTS
from taskqueue.worker.outcome_outbox import HOLD_SECONDS, RETURNED_SECONDS, OutcomeOutbox
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


def batching() -> tuple[Ledger, FakePublisher]:
    """Return an outbox whose operator reads batches, and the publisher it has."""
    ledger, publisher = Ledger(), FakePublisher()
    ledger.outbox.attach(publisher.real)
    ledger.outbox.batches = True
    return ledger, publisher


def sent(publisher: FakePublisher) -> list[tuple[str, str]]:
    """Return key and body of what is published and not settled."""
    return [(each.key.removeprefix("shop.q."), each.body.decode()) for each in publisher.published]


def send(ledger: Ledger, *names: str) -> None:
    """Publish events: the kind is the first letter of a name."""
    for name in names:
        ledger.outbox.publish(
            outcome_message(f"shop.q.{name[0]}", name.encode()),
            partial(ledger.confirmed.append, name),
        )


async def test_an_event_is_published_at_once_while_nothing_is_unconfirmed() -> None:
    ledger, publisher = batching()
    for name in ("a1", "a2"):
        send(ledger, name)
        assert sent(publisher) == [("a", name)]
        (published,) = publisher.settle()
        assert published.properties.content_type == "application/cloudevents+json"
    assert ledger.confirmed == ["a1", "a2"]


async def test_what_comes_meanwhile_is_one_message_when_the_confirm_arrives() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2", "a3", "a4")
    assert sent(publisher) == [("a", "a1")]
    publisher.settle()
    assert sent(publisher) == [("a", "[a2,a3,a4]")]
    assert ledger.confirmed == ["a1"]
    assert ledger.outbox.outstanding == 3
    (published,) = publisher.settle()
    assert published.properties.content_type == "application/cloudevents-batch+json"
    assert ledger.confirmed == ["a1", "a2", "a3", "a4"]
    assert ledger.outbox.outstanding == 0
    await ledger.outbox.wait_until_drained()


async def test_only_events_that_follow_one_another_share_a_message() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2", "c1", "a3", "a4", "c2")
    publisher.settle()
    assert sent(publisher) == [("a", "a2"), ("c", "c1"), ("a", "[a3,a4]"), ("c", "c2")]


async def test_a_dead_letter_is_in_no_batch_and_keeps_its_place() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2")
    dead = OutgoingMessage(
        exchange="taskqueue.dead", key="shop.q.a", body=b"dead", content_type="application/json"
    )
    ledger.outbox.publish(dead, lambda: None)
    send(ledger, "a3")
    publisher.settle()
    assert sent(publisher) == [("a", "a2"), ("a", "dead"), ("a", "a3")]


async def test_a_full_batch_does_not_wait_for_a_confirm() -> None:
    ledger, publisher = batching()
    names = [f"a{number}" for number in range(2 * BATCH_EVENTS + 10)]
    send(ledger, *names)
    bodies = [body for _, body in sent(publisher)]
    assert bodies[0] == "a0"
    assert [body.count(",") + 1 for body in bodies[1:]] == [BATCH_EVENTS, BATCH_EVENTS]
    publisher.settle()
    publisher.settle()
    assert ledger.confirmed == names


async def test_a_batch_is_within_its_bytes() -> None:
    ledger, publisher = batching()
    send(ledger, "a", *["a" * (BATCH_BYTES // 3)] * 7)
    publisher.settle()
    sizes = [len(body) for _, body in sent(publisher)]
    assert all(size <= BATCH_BYTES for size in sizes)
    assert len(sizes) == 4


@pytest.mark.parametrize("verdict", [Settled.RETURNED, Settled.UNKNOWN])
async def test_a_batch_that_did_not_arrive_is_published_again_in_order(verdict: Settled) -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2", "a3")
    publisher.settle()
    publisher.settle(verdict, "312 NO_ROUTE")
    assert ledger.outbox.outstanding == 2
    assert ledger.confirmed == ["a1"]
    await asyncio.sleep(11)
    assert sent(publisher) == [("a", "[a2,a3]")]
    publisher.settle()
    assert ledger.confirmed == ["a1", "a2", "a3"]


async def test_what_is_held_follows_when_what_is_in_flight_did_not_arrive() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2", "a3")
    publisher.settle(Settled.UNKNOWN)
    assert sent(publisher) == [("a", "[a2,a3]")]
    publisher.settle()
    await asyncio.sleep(11)
    publisher.settle()
    assert sorted(ledger.confirmed) == ["a1", "a2", "a3"]


async def test_a_lost_connection_keeps_the_order() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2", "b1")
    publisher.settle(Settled.UNKNOWN, "the connection is lost")
    publisher.settle(Settled.UNKNOWN, "the connection is lost")
    ledger.outbox.detach()
    send(ledger, "b2")
    successor = FakePublisher()
    ledger.outbox.attach(successor.real)
    assert sent(successor) == [("a", "[a1,a2]"), ("b", "[b1,b2]")]
    successor.settle()
    assert ledger.confirmed == ["a1", "a2", "b1", "b2"]


async def test_an_older_operator_gets_single_events_again_and_in_order() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2")
    ledger.outbox.batches = False
    send(ledger, "a3")
    assert sent(publisher) == [("a", "a1")], "it may not overtake what is held"
    publisher.settle()
    assert sent(publisher) == [("a", "a2"), ("a", "a3")]
    send(ledger, "a4")
    assert len(sent(publisher)) == 3
    publisher.settle()
    assert ledger.confirmed == ["a1", "a2", "a3", "a4"]


async def test_a_confirm_whose_handler_fails_does_not_lose_the_others_of_its_batch() -> None:
    ledger, publisher = batching()
    problems: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: problems.append(context["message"])
    )
    send(ledger, "a1")
    ledger.outbox.publish(outcome_message("shop.q.a", b"odd"), lambda: [][0])
    send(ledger, "a2")
    publisher.settle()
    publisher.settle()
    assert ledger.confirmed == ["a1", "a2"]
    assert ledger.outbox.outstanding == 0
    assert problems == ["on_confirmed of an outcome failed"]


async def test_a_message_that_cannot_be_published_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, publisher = batching()
    publish = publisher.publish

    def refuse(exchange: str, key: str, *rest: Any, **options: Any) -> None:
        if key.endswith(".x"):
            raise ValueError("it cannot be encoded")
        publish(exchange, key, *rest, **options)

    publisher.publish = refuse  # type: ignore[method-assign]
    send(ledger, "a1", "x1", "a2")
    publisher.settle()
    await turn()
    assert sent(publisher) == [("a", "a2")]
    publisher.settle()
    assert ledger.confirmed == ["a1", "a2"]
    assert ledger.outbox.outstanding == 1
    assert "outcome.unpublishable" in caplog.text


async def test_a_confirm_that_does_not_come_holds_up_nothing_for_long() -> None:
    ledger, publisher = batching()
    send(ledger, "a1", "a2", "a3")
    await asyncio.sleep(HOLD_SECONDS / 2)
    assert sent(publisher) == [("a", "a1")]
    await asyncio.sleep(HOLD_SECONDS)
    assert sent(publisher) == [("a", "a1"), ("a", "[a2,a3]")]
    send(ledger, "a4")
    publisher.settle()
    assert sent(publisher) == [("a", "a4")]
    await asyncio.sleep(2 * HOLD_SECONDS)
    assert sent(publisher) == [("a", "a4")]
