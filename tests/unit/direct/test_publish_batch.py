"""Messages on their way: pipelined, sent again when their fate is not known, errors that help."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pydantic
import pytest

from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.client import AsyncProducer, NotConfirmed, Refused, Unroutable
from taskqueue.direct.publish_batch import WINDOW
from taskqueue.direct.reconnecting_publisher import ReconnectingPublisher

pytestmark = pytest.mark.looptime

FULL = "the broker refused the message: its queue is full or failing"


class FakePublisher:
    """Settles as it is told; what it is told nothing about is confirmed."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.properties: list[Any] = []
        self.keys: set[tuple[str, str]] = set()
        self.verdicts: deque[tuple[Settled, str] | None] = deque()
        self.silent = False
        self.outstanding: list[OnSettled] = []
        self.most_outstanding = 0
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def publish(
        self, exchange: str, key: str, body: bytes, properties: Any, on_settled: OnSettled
    ) -> None:
        self.keys.add((exchange, key))
        self.bodies.append(body)
        self.properties.append(properties)
        self.outstanding.append(on_settled)
        self.most_outstanding = max(self.most_outstanding, len(self.outstanding))
        if not self.silent:
            verdict = self.verdicts.popleft() if self.verdicts else None
            asyncio.get_running_loop().call_soon(
                self._settle, on_settled, *(verdict or (Settled.CONFIRMED, ""))
            )

    def lose(self, reason: str) -> None:
        """Lose the channel: nothing outstanding is known."""
        self.closed.set_result(reason)
        for on_settled in list(self.outstanding):
            self._settle(on_settled, Settled.UNKNOWN, reason)

    def _settle(self, on_settled: OnSettled, verdict: Settled, text: str) -> None:
        self.outstanding.remove(on_settled)
        on_settled(verdict, text)


class FakeLine:
    """Gives one publisher after the other."""

    def __init__(self) -> None:
        self.publishers: list[FakePublisher] = []
        self.trouble = ""
        self.given = 0

    async def publisher(self) -> Publisher:
        alive = [one for one in self.publishers if not one.closed.done()]
        if not alive:
            self.trouble = "nothing listens there"
            await asyncio.Event().wait()
        self.given += 1
        return cast(Publisher, alive[0])

    async def close(self) -> None: ...


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


@pytest.fixture
async def broker(line: FakeLine) -> FakePublisher:
    line.publishers.append(FakePublisher())
    return line.publishers[0]


@pytest.fixture
def producer(line: FakeLine, monkeypatch: pytest.MonkeyPatch) -> AsyncProducer:
    producer = AsyncProducer("amqp://user:secret@broker/", patience_seconds=30)
    monkeypatch.setattr(producer, "_line", cast(ReconnectingPublisher, line))
    return producer


@dataclass
class Mail:
    to: str


class Order(pydantic.BaseModel):
    number: int


async def test_a_message_is_what_the_contract_says(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    await producer.send("shop", "mails", {"to": "a"}, handler="mail", correlation_id="c")
    assert broker.bodies == [b'{"to":"a"}']
    assert broker.keys == {("taskqueue.work", "shop.mails")}
    (sent,) = broker.properties
    assert (sent.type, sent.correlation_id, sent.delivery_mode) == ("mail", "c", 2)
    assert sent.content_type == "application/json"
    assert sent.message_id
    assert not sent.headers


async def test_payloads_may_be_models_or_nothing(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    for payload in (None, Mail("a"), Order(number=3)):
        await producer.send("shop", "mails", payload)
    assert broker.bodies == [b"{}", b'{"to":"a"}', b'{"number":3}']
    assert broker.properties[0].type is None


@pytest.mark.parametrize(
    ("payload", "error", "words"),
    [
        ([1], TypeError, "a JSON object, not list"),
        ({"raw": b""}, TypeError, "bytes"),
        ({"text": "\ud800"}, TypeError, "no Unicode text"),
        ({"text": "x" * 2**24}, ValueError, "16777216"),
    ],
)
async def test_what_cannot_be_sent_is_not(
    broker: FakePublisher,
    producer: AsyncProducer,
    payload: Any,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await producer.send("shop", "mails", payload)
    assert not broker.bodies


async def test_many_are_pipelined_within_bounds_and_each_is_sent_once(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    assert await producer.send_many("shop", "mails", ({"n": n} for n in range(3000))) == 3000
    assert broker.bodies == [b'{"n":%d}' % n for n in range(3000)]
    assert len({sent.message_id for sent in broker.properties}) == 3000
    assert WINDOW / 2 < broker.most_outstanding <= WINDOW


async def test_none_at_all(broker: FakePublisher, producer: AsyncProducer) -> None:
    assert await producer.send_many("shop", "mails", []) == 0


async def test_a_full_queue_is_tried_again_without_hurry(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.verdicts.extend([(Settled.UNKNOWN, FULL)] * 3)
    begun = asyncio.get_running_loop().time()
    await producer.send("shop", "mails", {"n": 1})
    assert broker.bodies == [b'{"n":1}'] * 4
    assert asyncio.get_running_loop().time() - begun > 0.5


async def test_a_queue_that_stays_full_is_told(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.verdicts.extend([None, *[(Settled.UNKNOWN, FULL)] * 1000])
    with pytest.raises(NotConfirmed, match=r"shop/mails within 30 s \(.*queue is full") as found:
        await producer.send_many("shop", "mails", [{}, {}])
    assert found.value.confirmed == 1
    assert len(broker.bodies) < 20


async def test_a_lost_connection_costs_no_message(
    line: FakeLine, broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.silent = True
    sending = asyncio.create_task(producer.send_many("shop", "mails", [{"n": n} for n in range(5)]))
    await asyncio.sleep(1)
    line.publishers.append(FakePublisher())
    broker.lose("the connection was lost: reset")
    assert await sending == 5
    assert line.publishers[1].bodies == broker.bodies


async def test_a_broker_that_is_away_is_named(line: FakeLine, producer: AsyncProducer) -> None:
    begun = asyncio.get_running_loop().time()
    with pytest.raises(NotConfirmed, match=r"broker:5672/ .*\(nothing listens there\)") as found:
        await producer.send("shop", "mails")
    assert "secret" not in str(found.value)
    assert asyncio.get_running_loop().time() - begun == 30


async def test_patience_is_for_silence_not_for_the_whole(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.silent = True

    async def confirm_slowly() -> None:
        for _ in range(5):
            await asyncio.sleep(20)
            broker._settle(broker.outstanding[0], Settled.CONFIRMED, "")

    confirming = asyncio.create_task(confirm_slowly())
    assert await producer.send_many("shop", "mails", [{}] * 5) == 5
    await confirming


async def test_a_late_confirm_harms_nobody(broker: FakePublisher, producer: AsyncProducer) -> None:
    broker.silent = True
    with pytest.raises(NotConfirmed):
        await producer.send("shop", "mails")
    broker._settle(broker.outstanding[0], Settled.CONFIRMED, "")


async def test_a_queue_nobody_declared_is_told_at_once(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.verdicts.append((Settled.RETURNED, "312 NO_ROUTE: exchange taskqueue.work"))
    with pytest.raises(
        Unroutable, match=r"no TaskQueue shop/mails has declared .* broker:5672/: create the TaskQ"
    ):
        await producer.send("shop", "mails")


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        ("404 NOT_FOUND - no exchange 'taskqueue.work'", Unroutable, "no operator has declared"),
        ("403 ACCESS_REFUSED - write access", Refused, r"topic write permission on shop\.mails"),
        ("406 PRECONDITION_FAILED - message size", Refused, "message size"),
    ],
)
async def test_what_the_broker_will_never_take_is_told_at_once(
    broker: FakePublisher,
    producer: AsyncProducer,
    reason: str,
    error: type[Exception],
    words: str,
) -> None:
    broker.silent = True
    sending = asyncio.create_task(producer.send("shop", "mails"))
    await asyncio.sleep(1)
    broker.lose(reason)
    with pytest.raises(error, match=words):
        await sending


async def test_mistakes_in_the_middle_of_many_are_the_callers_error(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    def payloads() -> Iterator[Any]:
        yield {}
        yield 5

    with pytest.raises(TypeError, match="not int"):
        await producer.send_many("shop", "mails", payloads())


def test_settings_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="amqp://"):
        AsyncProducer("http://broker/")
    with pytest.raises(ValueError, match="key password is missing"):
        AsyncProducer({"host": "broker", "username": "u"})


async def test_a_closed_producer_says_so(producer: AsyncProducer) -> None:
    await producer.close()
    with pytest.raises(RuntimeError, match="closed"):
        await producer.send("shop", "mails")


def test_a_producer_of_another_loop_says_so() -> None:
    producer = AsyncProducer("amqp://user:secret@127.0.0.1:1/", patience_seconds=0.01)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        with pytest.raises(NotConfirmed):
            first.run(producer.send("shop", "mails"))
        with pytest.raises(RuntimeError, match="another event loop"):
            second.run(producer.send("shop", "mails"))
        first.run(producer.close())
