"""Heartbeats are sent when due, and failing ones disturb nothing else; virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.contract.heartbeat import Heartbeat, decode
from taskqueue.limits import HEARTBEAT_SECONDS
from taskqueue.model.worker import WorkerState
from taskqueue.worker.heartbeat_sender import OPEN_SECONDS, HeartbeatSender
from taskqueue.worker.outcome_publisher import OutcomePublisher
from tests.unit.worker.fakes import turn

pytestmark = pytest.mark.looptime


@dataclass(frozen=True)
class Sent:
    at: float
    exchange: str
    key: str
    heartbeat: Heartbeat
    properties: BasicProperties


class FakeChannel:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return not self.closed.done()

    def close(self, code: int, text: str) -> None:
        self.closed.set_result((code, text))

    async def declare_exchange(self, name: str, *, passive: bool) -> None:
        assert passive, "only the operator declares"
        if self._broker.stalled:
            await asyncio.Event().wait()
        if not self._broker.exchange_exists:
            self.close(404, f"NOT_FOUND - no exchange {name}")
            raise ChannelRefused(*self.closed.result())

    def publish(self, exchange: str, key: str, body: bytes, properties: BasicProperties) -> None:
        assert self.is_open
        if self._broker.refuses:
            self.close(403, "ACCESS_REFUSED - no")
            return
        now = asyncio.get_running_loop().time()
        self._broker.sent.append(Sent(now, exchange, key, decode(body), properties))


class FakeConnection:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.lost = False

    async def channel(self) -> Channel:
        if self.lost:
            raise BrokerUnavailable("the connection was lost")
        if self._broker.silent:
            await asyncio.Event().wait()
        self._broker.channels.append(FakeChannel(self._broker))
        return cast(Channel, self._broker.channels[-1])


@dataclass
class FakeBroker:
    """Healthy and complete, unless the test changes that."""

    exchange_exists: bool = True
    refuses: bool = False
    #: Opens no channel, as in an alarm.
    silent: bool = False
    #: Opens channels, and then says nothing.
    stalled: bool = False
    channels: list[FakeChannel] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        return [round(one.at, 3) for one in self.sent]


class HeartbeatHarness:
    """An outcome publisher as far as it has a connection, and the heartbeats on it."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.state = WorkerState.READY
        self.busy = 0
        self.connection: Connection | None = None
        self.heartbeats = HeartbeatSender(cast(OutcomePublisher, self), describe=self._describe)
        self.connect()

    async def __aenter__(self) -> HeartbeatHarness:
        self._task = asyncio.create_task(self.heartbeats.run())
        return self

    def connect(self) -> FakeConnection:
        made = FakeConnection(self.broker)
        self.connection = cast(Connection, made)
        return made

    def change_busy(self, busy: int) -> None:
        self.busy = busy
        self.heartbeats.on_busy_changed()

    @property
    def sent_busy(self) -> list[tuple[float, int | None]]:
        return [
            (at, one.heartbeat.busy)
            for at, one in zip(self.broker.times, self.broker.sent, strict=True)
        ]

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _describe(self) -> Heartbeat:
        return Heartbeat(
            namespace="shop",
            queue="q",
            pod="pod-1",
            node="node-1",
            cpus=2.0,
            slots=4,
            handlers=("resize",),
            running=(),
            state=self.state,
            busy=self.busy,
        )


async def test_one_at_once_and_then_every_ten_seconds() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(35)
        assert harness.broker.times == [0.0, 10.0, 20.0, 30.0]
        assert HEARTBEAT_SECONDS == 10.0
        assert len(harness.broker.channels) == 1, "a channel of their own, once"


async def test_how_it_is_addressed() -> None:
    async with HeartbeatHarness() as harness:
        await turn()
        (sent,) = harness.broker.sent
        assert (sent.exchange, sent.key) == ("taskqueue.heartbeats", "shop.q.worker.heartbeat")
        assert sent.heartbeat == harness._describe()
        assert sent.properties.content_type == "application/cloudevents+json"
        assert sent.properties.delivery_mode == 1, "worth nothing after a restart of the broker"


async def test_a_state_change_is_sent_at_once_and_the_next_is_due_ten_seconds_later() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(4)
        harness.state = WorkerState.DRAINING
        harness.heartbeats.send_soon()
        await asyncio.sleep(21)
        assert harness.broker.times == [0.0, 4.0, 14.0, 24.0]
        assert harness.broker.sent[1].heartbeat.state is WorkerState.DRAINING


async def test_without_a_connection_none_is_sent_and_none_is_made_up_for() -> None:
    async with HeartbeatHarness() as harness:
        harness.connection = None
        await asyncio.sleep(25)
        assert harness.broker.sent == []
        harness.connect()
        await asyncio.sleep(10)
        assert harness.broker.times == [30.0]


# Idle and busy.


async def test_a_busy_change_is_sent_when_it_has_lasted_a_moment() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.change_busy(2)
        await asyncio.sleep(2.5)
        harness.change_busy(0)
        await asyncio.sleep(11)
        assert harness.sent_busy == [(0.0, 0), (5.1, 2), (7.6, 0), (17.6, 0)]


async def test_busy_changes_are_sent_at_most_every_two_seconds() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.change_busy(1)
        await asyncio.sleep(0.5)
        harness.change_busy(0)
        await asyncio.sleep(2)
        harness.change_busy(1)
        await asyncio.sleep(2)
        assert harness.sent_busy == [(0.0, 0), (5.1, 1), (7.1, 0), (9.1, 1)]


async def test_a_heartbeat_for_another_reason_counts_too() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.heartbeats.send_soon()
        await asyncio.sleep(1)
        harness.change_busy(1)
        await asyncio.sleep(2)
        assert harness.sent_busy == [(0.0, 0), (5.0, 0), (7.0, 1)]


async def test_a_busy_change_that_is_reverted_is_not_sent() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        for _ in range(100):
            harness.change_busy(1)
            await asyncio.sleep(0.001)
            harness.change_busy(0)
            await asyncio.sleep(0.1)
        assert harness.broker.times == [0.0, 10.0]


async def test_constant_busy_changes_do_not_cause_constant_heartbeats() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        for number in range(10_000):
            harness.change_busy(number % 2)
            await asyncio.sleep(0.001)
        times = harness.broker.times
        assert len(times) <= 7
        assert all(later - earlier >= 1.999 for earlier, later in pairwise(times))


async def test_a_busy_change_missed_without_a_connection_is_sent_with_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.connection = None
        harness.change_busy(1)
        await asyncio.sleep(3)
        harness.connect()
        harness.change_busy(2)
        await asyncio.sleep(1)
        assert harness.sent_busy == [(0.0, 0), (8.1, 2)]


async def test_another_connection_means_another_channel() -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.connect()
        await asyncio.sleep(10)
        assert len(harness.broker.channels) == 2
        assert harness.broker.times == [0.0, 10.0]


async def test_a_lost_connection_is_not_logged_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.connect().lost = True
        await asyncio.sleep(20)
        assert harness.broker.times == [0.0]
        assert caplog.records == []


async def test_a_lost_channel_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    async with HeartbeatHarness() as harness:
        await asyncio.sleep(5)
        harness.broker.channels[-1].close(0, "it was closed")
        await asyncio.sleep(10)
        assert harness.broker.times == [0.0, 10.0]
        assert caplog.records == []


@pytest.mark.parametrize("trouble", ["missing", "refused"])
async def test_a_refused_heartbeat_is_logged_once_and_retried(
    caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    async with HeartbeatHarness() as harness:
        broker = harness.broker
        broker.exchange_exists, broker.refuses = trouble != "missing", trouble == "refused"
        await asyncio.sleep(65)
        assert broker.sent == []
        assert [record.getMessage() for record in caplog.records] == ["heartbeat.not_sent"]
        broker.exchange_exists, broker.refuses = True, False
        await asyncio.sleep(20)
        assert broker.times == [70.0, 80.0]
        # It is news when it happens again.
        broker.exchange_exists, broker.refuses = trouble != "missing", trouble == "refused"
        broker.channels[-1].close(0, "it was closed")
        await asyncio.sleep(30)
        assert [record.getMessage() for record in caplog.records] == ["heartbeat.not_sent"] * 2


@pytest.mark.parametrize("trouble", ["silent", "stalled"])
async def test_a_broker_that_does_not_answer_holds_nobody_up(trouble: str) -> None:
    async with HeartbeatHarness() as harness:
        setattr(harness.broker, trouble, True)
        await asyncio.sleep(5)
        harness.connect()
        before = asyncio.get_running_loop().time()
        await harness.heartbeats.send()  # the last one
        assert asyncio.get_running_loop().time() - before <= OPEN_SECONDS + 0.01
        setattr(harness.broker, trouble, False)
        harness.broker.sent.clear()
        await harness.heartbeats.send()
        assert len(harness.broker.sent) == 1
