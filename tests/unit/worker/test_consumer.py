"""The consumer through losses, changes of the prefetch and the end, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.worker import consumer
from taskqueue.worker.broker_source import BrokerSource
from taskqueue.worker.command_consumer import CommandConsumer
from taskqueue.worker.consumer import Consumer
from taskqueue.worker.runtime import Runtime
from tests.unit.worker.fakes import BROKER

pytestmark = pytest.mark.looptime


class FakeChannel:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.on_cancel: Callable[[str], None] = lambda reason: None
        self._tags = 0

    async def declare_queue(self, name: str, *, passive: bool) -> int:
        assert passive, "only the operator declares"
        if not self._broker.queue_exists:
            self.closed.set_result((404, "NOT_FOUND"))
            raise ChannelRefused(404, "NOT_FOUND")
        return 0

    async def set_prefetch(self, count: int) -> None:
        self._broker.note(f"qos {count}")

    async def consume(self, queue: str, on_delivery: Any, on_cancel: Callable[[str], None]) -> str:
        self._broker.note("consume")
        self.on_cancel = on_cancel
        self._tags += 1
        return f"tag-{self._tags}"

    async def cancel(self, tag: str) -> None:
        self._broker.note(f"cancel {tag}")

    async def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result((0, "closed by us"))


class FakeConnection:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def channel(self) -> FakeChannel:
        if self.closed.done():
            raise BrokerUnavailable("lost")
        self._broker.channels.append(FakeChannel(self._broker))
        return self._broker.channels[-1]

    async def close(self) -> None:
        self._broker.note("close")
        if not self.closed.done():
            self.closed.set_result("closed by us")


@dataclass
class FakeBroker:
    """Notes what is asked of it; up and with the queue, unless the test changes that."""

    up: bool = True
    queue_exists: bool = True
    notes: list[str] = field(default_factory=list)
    tries: int = 0
    #: Another one is refused; None: all are let in.
    password: str | None = None
    connections: list[FakeConnection] = field(default_factory=list)
    channels: list[FakeChannel] = field(default_factory=list)

    async def connect(self, parameters: BrokerParameters, *, name: str) -> FakeConnection:
        self.tries += 1
        if self.password not in (None, parameters.password):
            raise BrokerUnavailable("the broker refused the login")
        if not self.up:
            raise BrokerUnavailable("nothing listens there")
        self.connections.append(FakeConnection(self))
        return self.connections[-1]

    def note(self, what: str) -> None:
        self.notes.append(what)

    def lose(self) -> None:
        if not self.channels[-1].closed.done():
            self.channels[-1].closed.set_result((0, "connection lost"))
        self.connections[-1].closed.set_result("connection lost")


@dataclass
class FakeRuntime:
    """Counts calls; the test sets how many deliveries are unacknowledged."""

    unacknowledged: int = 0
    left_over: int = 0
    connections: int = 0
    opened: int = 0
    lost: int = 0

    def on_connected(self, connection: Connection) -> None:
        self.connections += 1

    def on_channel_opened(self, channel: Channel) -> None:
        self.opened += 1

    def on_delivery(self, delivery: Delivery) -> None: ...

    def on_consumers_cancelled(self) -> None:
        self.left_over = self.unacknowledged

    def on_channel_lost(self) -> None:
        self.lost += 1


class FakeCommands:
    """A command consumer that catches up at once, or when the test says so."""

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self.known.set()
        self.following = 0
        self.followed = 0

    async def follow(self, connection: Connection, on_caught_up: Callable[[], None]) -> None:
        self.following += 1
        self.followed += 1
        try:
            await self.known.wait()
            on_caught_up()
            await asyncio.Event().wait()
        finally:
            self.following -= 1


class ConsumerHarness:
    def __init__(
        self,
        broker: FakeBroker,
        monkeypatch: pytest.MonkeyPatch,
        source: BrokerSource = BROKER,
    ) -> None:
        self.commands = FakeCommands()
        monkeypatch.setattr(consumer, "connect", broker.connect)
        self.runtime = FakeRuntime()
        self.consumer = Consumer(
            source,
            name="worker",
            queue="taskqueue.shop.q",
            prefetch=2,
            runtime=cast(Runtime, self.runtime),
            commands=cast(CommandConsumer, self.commands),
        )
        self.task = asyncio.create_task(self.consumer.run())

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_it_registers_with_its_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    await asyncio.sleep(1)
    assert harness.consumer.registered
    assert broker.notes == ["qos 2", "consume"]
    await harness.end()
    assert not harness.consumer.registered
    assert broker.notes[-1] == "close"


async def test_consumer_retries_while_the_broker_is_down_and_logs_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(up=False), monkeypatch)
    await asyncio.sleep(60)
    assert 8 <= broker.tries <= 20, "with growing pauses of at most 10 s"
    assert [record.getMessage() for record in caplog.records] == ["consumer.lost"]
    broker.up = True
    await asyncio.sleep(11)
    assert harness.consumer.registered
    await harness.end()


def rotating(tmp_path: Path, password: str) -> BrokerSource:
    for key, text in (("host", "rabbit"), ("username", "u"), ("password", password)):
        (tmp_path / key).write_text(text)
    return BrokerSource({}, str(tmp_path))


async def test_a_changed_password_is_used_for_the_next_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broker = FakeBroker(password="old")
    harness = ConsumerHarness(broker, monkeypatch, rotating(tmp_path, "old"))
    await asyncio.sleep(1)
    broker.password = "new"
    await asyncio.sleep(60)
    assert harness.consumer.registered, "a connection outlives its password"
    broker.lose()
    await asyncio.sleep(60)
    assert not harness.consumer.registered
    assert "refused the login" in str(vars(caplog.records[-1]))
    rotating(tmp_path, "new")
    await asyncio.sleep(11)
    assert harness.consumer.registered
    await harness.end()


async def test_files_that_are_wrong_are_read_again_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch, rotating(tmp_path, ""))
    await asyncio.sleep(60)
    assert broker.tries == 0
    (lost,) = caplog.records
    assert lost.getMessage() == "consumer.lost"
    assert "key password is missing" in str(vars(lost))
    rotating(tmp_path, "p")
    await asyncio.sleep(11)
    assert harness.consumer.registered
    await harness.end()


async def test_variables_that_are_wrong_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = BrokerSource({"TASKQUEUE_BROKER_URI": "http://rabbit"})
    harness = ConsumerHarness(FakeBroker(), monkeypatch, source)
    with pytest.raises(BrokerConfigurationError):
        await harness.task


@pytest.mark.parametrize("loss", ["connection", "channel", "consumer"])
async def test_consumer_registers_again_after_any_loss(
    monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    await asyncio.sleep(1)
    if loss == "connection":
        broker.lose()
    elif loss == "channel":
        broker.channels[-1].closed.set_result((406, "PRECONDITION_FAILED"))
    else:
        broker.channels[-1].on_cancel("the queue was deleted")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not harness.consumer.registered
    await asyncio.sleep(1)
    assert harness.consumer.registered
    assert (harness.runtime.opened, harness.runtime.lost) == (2, 1)
    assert len(broker.connections) == (2 if loss == "connection" else 1)
    await harness.end()


async def test_a_missing_queue_is_retried_on_one_connection_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(queue_exists=False), monkeypatch)
    await asyncio.sleep(60)
    assert len(broker.connections) == 1
    assert len(broker.channels) >= 8
    assert [record.getMessage() for record in caplog.records] == ["consumer.lost"]
    broker.queue_exists = True
    await asyncio.sleep(11)
    assert harness.consumer.registered
    await harness.end()


async def test_a_raised_prefetch_is_one_more_consumer_for_the_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    await asyncio.sleep(1)
    harness.runtime.unacknowledged = 2
    harness.consumer.want_prefetch(64)
    await asyncio.sleep(0.001)
    assert broker.notes == ["qos 2", "consume", "qos 62", "consume"], "a cancel costs deliveries"
    assert harness.consumer.registered
    await harness.consumer.stop()
    assert broker.notes[4:] == ["cancel tag-2", "cancel tag-1"]
    await harness.end()


async def test_a_lowered_prefetch_counts_what_cancelled_consumers_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    harness.consumer.want_prefetch(64)
    await asyncio.sleep(1)
    broker.notes.clear()
    harness.runtime.unacknowledged = 40
    harness.consumer.want_prefetch(4)
    await asyncio.sleep(10)
    assert broker.notes == ["cancel tag-1"]
    for left_over, added in [(5, []), (4, []), (3, [1]), (3, []), (1, [2]), (0, [1]), (0, [])]:
        broker.notes.clear()
        harness.runtime.left_over = left_over
        harness.consumer.notify()
        await asyncio.sleep(10)
        assert broker.notes == [note for one in added for note in (f"qos {one}", "consume")]
        assert harness.consumer.registered, "it is as alive as it can be"
    broker.notes.clear()
    harness.runtime.unacknowledged = 4
    harness.consumer.want_prefetch(2)
    await asyncio.sleep(10)
    assert broker.notes == ["cancel tag-4", "cancel tag-3", "cancel tag-2"]
    await harness.end()


async def test_a_stop_cancels_the_consumer_and_keeps_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    await asyncio.sleep(1)
    await harness.consumer.stop()
    await asyncio.sleep(60)
    assert broker.notes == ["qos 2", "consume", "cancel tag-1"]
    assert harness.runtime.lost == 0
    await harness.end()
    assert broker.notes[-1] == "close"


async def test_a_stop_while_lowering_registers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    harness.consumer.want_prefetch(64)
    await asyncio.sleep(1)
    harness.runtime.unacknowledged = 40
    harness.consumer.want_prefetch(2)
    await asyncio.sleep(1)
    broker.notes.clear()
    await harness.consumer.stop()
    await asyncio.sleep(60)
    assert broker.notes == []
    await harness.end()


async def test_a_stop_ends_the_wait_for_a_broker_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(up=False), monkeypatch)
    await asyncio.sleep(60)
    before = asyncio.get_running_loop().time()
    await harness.consumer.stop()
    assert asyncio.get_running_loop().time() - before < 0.1
    assert not broker.connections
    await harness.end()


# Commands.


async def test_no_work_is_consumed_before_the_past_commands_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    harness.commands.known.clear()
    await asyncio.sleep(60)
    assert not harness.consumer.registered
    assert "consume" not in broker.notes
    harness.commands.known.set()
    await asyncio.sleep(0.001)
    assert harness.consumer.registered
    harness.commands.known.clear()
    broker.lose()
    await asyncio.sleep(60)
    assert not harness.consumer.registered, "not on the next connection either"
    harness.commands.known.set()
    await asyncio.sleep(0.001)
    assert harness.consumer.registered
    assert harness.runtime.connections == 2
    await harness.end()


async def test_a_stop_before_the_commands_are_known_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    harness.commands.known.clear()
    await asyncio.sleep(1)
    await asyncio.wait_for(harness.consumer.stop(), 0.1)
    assert "consume" not in broker.notes
    await harness.end()


async def test_after_a_stop_commands_are_consumed_on_the_next_connection_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = ConsumerHarness(broker := FakeBroker(), monkeypatch)
    await asyncio.sleep(1)
    await harness.consumer.stop()
    for connections in (2, 3):
        broker.lose()
        await asyncio.sleep(11)
        assert (harness.commands.following, harness.commands.followed) == (1, connections)
        assert len(broker.connections) == connections
    assert broker.notes.count("consume") == 1
    await harness.end()
    assert harness.commands.following == 0
