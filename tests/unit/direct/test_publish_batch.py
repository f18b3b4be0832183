"""The asyncio producer: pipelining, republishing of what was not confirmed, and its errors."""

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
    """Settles messages by its list of verdicts; without one it confirms."""

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
        """Lose the channel: what is outstanding settles as unknown."""
        self.closed.set_result(reason)
        for on_settled in list(self.outstanding):
            self._settle(on_settled, Settled.UNKNOWN, reason)

    def _settle(self, on_settled: OnSettled, verdict: Settled, text: str) -> None:
        self.outstanding.remove(on_settled)
        on_settled(verdict, text)


class FakeReconnectingPublisher:
    """Returns one publisher after the other."""

    def __init__(self) -> None:
        self.publishers: list[FakePublisher] = []
        self.last_error = ""
        self.given = 0
        self.exchange = "taskqueue.direct"

    async def publisher(self) -> Publisher:
        alive = [one for one in self.publishers if not one.closed.done()]
        if not alive:
            self.last_error = "nothing listens there"
            await asyncio.Event().wait()
        self.given += 1
        return cast(Publisher, alive[0])

    async def close(self) -> None: ...


@pytest.fixture
def connection() -> FakeReconnectingPublisher:
    return FakeReconnectingPublisher()


@pytest.fixture
async def broker(connection: FakeReconnectingPublisher) -> FakePublisher:
    connection.publishers.append(FakePublisher())
    return connection.publishers[0]


@pytest.fixture
def producer(
    connection: FakeReconnectingPublisher, monkeypatch: pytest.MonkeyPatch
) -> AsyncProducer:
    producer = AsyncProducer("amqp://user:secret@broker/", patience_seconds=30)
    monkeypatch.setattr(producer, "_publisher", cast(ReconnectingPublisher, connection))
    return producer


@dataclass
class Mail:
    to: str


class Order(pydantic.BaseModel):
    number: int


async def test_producer_sends_a_message_as_the_contract_says(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    await producer.send("shop", "mails", {"to": "a"}, handler="mail", correlation_id="c")
    assert broker.bodies == [b'{"to":"a"}']
    assert broker.keys == {("taskqueue.direct", "shop.mails")}
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
        ({"text": "\ud800"}, TypeError, "not Unicode text"),
        ({"text": "x" * 2**24}, ValueError, "16777216"),
    ],
)
async def test_producer_refuses_an_invalid_payload_before_publishing(
    broker: FakePublisher,
    producer: AsyncProducer,
    payload: Any,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await producer.send("shop", "mails", payload)
    assert not broker.bodies


async def test_producer_pipelines_within_its_window(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    assert await producer.send_many("shop", "mails", ({"n": n} for n in range(3000))) == 3000
    assert broker.bodies == [b'{"n":%d}' % n for n in range(3000)]
    assert len({sent.message_id for sent in broker.properties}) == 3000
    assert WINDOW / 2 < broker.most_outstanding <= WINDOW


async def test_producer_sends_no_message_of_an_empty_iterable(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    assert await producer.send_many("shop", "mails", []) == 0


async def test_producer_backs_off_while_the_queue_is_full(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.verdicts.extend([(Settled.UNKNOWN, FULL)] * 3)
    begun = asyncio.get_running_loop().time()
    await producer.send("shop", "mails", {"n": 1})
    assert broker.bodies == [b'{"n":1}'] * 4
    assert asyncio.get_running_loop().time() - begun > 0.5


async def test_producer_names_a_queue_that_stays_full(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.verdicts.extend([None, *[(Settled.UNKNOWN, FULL)] * 1000])
    with pytest.raises(NotConfirmed, match=r"shop/mails within 30 s \(.*queue is full") as found:
        await producer.send_many("shop", "mails", [{}, {}])
    assert found.value.confirmed == 1
    assert len(broker.bodies) < 20


async def test_producer_republishes_after_a_lost_connection(
    connection: FakeReconnectingPublisher, broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.silent = True
    sending = asyncio.create_task(producer.send_many("shop", "mails", [{"n": n} for n in range(5)]))
    await asyncio.sleep(1)
    connection.publishers.append(FakePublisher())
    broker.lose("the connection was lost: reset")
    assert await sending == 5
    assert connection.publishers[1].bodies == broker.bodies


async def test_producer_names_a_broker_that_is_unreachable(
    connection: FakeReconnectingPublisher, producer: AsyncProducer
) -> None:
    begun = asyncio.get_running_loop().time()
    with pytest.raises(NotConfirmed, match=r"broker:5672/ .*\(nothing listens there\)") as found:
        await producer.send("shop", "mails")
    assert "secret" not in str(found.value)
    assert asyncio.get_running_loop().time() - begun == 30


async def test_producer_times_out_on_silence_not_on_a_long_call(
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


async def test_producer_ignores_a_confirm_after_its_timeout(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.silent = True
    with pytest.raises(NotConfirmed):
        await producer.send("shop", "mails")
    broker._settle(broker.outstanding[0], Settled.CONFIRMED, "")


async def test_producer_raises_at_once_for_an_undeclared_queue(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    broker.verdicts.append((Settled.RETURNED, "312 NO_ROUTE: exchange taskqueue.direct"))
    with pytest.raises(
        Unroutable, match=r"no TaskQueue shop/mails has declared .* broker:5672/: create the TaskQ"
    ):
        await producer.send("shop", "mails")


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        ("404 NOT_FOUND - no exchange 'taskqueue.direct'", Unroutable, "no operator has declared"),
        ("403 ACCESS_REFUSED - write access", Refused, r"topic write permission on shop\.mails"),
        ("406 PRECONDITION_FAILED - message size", Refused, "message size"),
    ],
)
async def test_producer_raises_at_once_what_the_broker_never_accepts(
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


async def test_producer_raises_for_an_invalid_payload_among_many(
    broker: FakePublisher, producer: AsyncProducer
) -> None:
    def payloads() -> Iterator[Any]:
        yield {}
        yield 5

    with pytest.raises(TypeError, match="not int"):
        await producer.send_many("shop", "mails", payloads())


def test_producer_checks_its_settings_at_once() -> None:
    with pytest.raises(ValueError, match="amqp://"):
        AsyncProducer("http://broker/")
    with pytest.raises(ValueError, match="key password is missing"):
        AsyncProducer({"host": "broker", "username": "u"})


async def test_producer_raises_when_it_is_closed(producer: AsyncProducer) -> None:
    await producer.close()
    with pytest.raises(RuntimeError, match="closed"):
        await producer.send("shop", "mails")


def test_producer_raises_in_another_event_loop() -> None:
    producer = AsyncProducer("amqp://user:secret@127.0.0.1:1/", patience_seconds=0.01)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        with pytest.raises(NotConfirmed):
            first.run(producer.send("shop", "mails"))
        with pytest.raises(RuntimeError, match="another event loop"):
            second.run(producer.send("shop", "mails"))
        first.run(producer.close())
