"""A worker's life from its first heartbeat to its last, drained on order or not; virtual time."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.contract.work import WorkMessage
from taskqueue.worker import worker
from taskqueue.worker.runtime import Runtime
from taskqueue.worker.sdk import Progress
from tests.unit.worker.fakes import FakeChannel as FakeDeliveries
from tests.unit.worker.fakes import FakeExecutor, FakePublisher, settings, work
from tests.unit.worker.test_heartbeat_sender import FakeBroker, FakeConnection

pytestmark = pytest.mark.looptime


class FakePublishing:
    """A publish line that always has a connection."""

    broker = FakeBroker()

    def __init__(self, *_: object, **__: object) -> None:
        self.connection = FakeConnection(self.broker)

    async def run(self) -> None:
        await asyncio.Event().wait()


class FakeConsuming:
    """A consume line that is registered after 60 s."""

    def __init__(self, *_: object, intake: Runtime, **__: object) -> None:
        self.ready = asyncio.Event()
        self.registered = False
        self.changed_at = 0.0

    async def run(self) -> None:
        await asyncio.sleep(60)
        self.registered = True
        self.ready.set()
        await asyncio.Event().wait()

    async def stop(self) -> None: ...

    def want_prefetch(self, prefetch: int) -> None: ...

    def poke(self) -> None: ...


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    broker = FakeBroker()
    monkeypatch.setattr(FakePublishing, "broker", broker)
    monkeypatch.setattr(worker, "OutcomePublisher", FakePublishing)
    monkeypatch.setattr(worker, "Consumer", FakeConsuming)
    return broker


class Life:
    """A worker that takes work after 60 s, with the broker and the handlers in the test's hands."""

    def __init__(self, broker: FakeBroker, **changes: float) -> None:
        self.broker = broker
        self.executor = FakeExecutor()
        self.publisher = FakePublisher()
        self.worker = worker.WorkerService(
            settings(**{"node": "node-1", "grace_seconds": 30.0, "health_port": 0, **changes}),
            self.executor,
            handlers=("resize", "fetch"),
        )
        self.worker._reporter.attach(self.publisher.real)
        self.channel = FakeDeliveries()
        self.worker._runtime.channel_opened(cast(Channel, self.channel))
        self.task = asyncio.create_task(self.worker.run())

    def deliver(self, message: WorkMessage | BasicProperties) -> None:
        self.worker._runtime.delivered(self.channel.deliver(message))

    @property
    def states(self) -> list[tuple[float, str]]:
        """When it said what it does."""
        return list(
            zip(self.broker.times, (one.beat.state for one in self.broker.sent), strict=True)
        )

    async def cut_short(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_a_worker_registers_when_it_takes_work_and_says_good_bye(broker: FakeBroker) -> None:
    life = Life(broker)
    await asyncio.sleep(75)
    life.worker.stop()
    assert await life.task
    assert life.states == [(60, "ready"), (70, "ready"), (75, "draining"), (75, "stopped")]
    beat = broker.sent[0].beat
    assert (beat.namespace, beat.queue, beat.pod, beat.node) == ("shop", "q", "pod-1", "node-1")
    assert (beat.slots, beat.handlers) == (2, ("fetch", "resize"))
    assert (beat.running, beat.busy) == ((), 0)
    assert beat.cpus >= 1


async def test_what_runs_is_told_with_its_progress_until_it_has_ended(broker: FakeBroker) -> None:
    life = Life(broker)
    life.deliver(work("k.1", timeout_seconds=300))
    life.deliver(BasicProperties())
    await asyncio.sleep(61)
    life.executor.started[0].progress = Progress(39.6, "resizing")
    life.worker.drain()
    await asyncio.sleep(1)
    life.executor.started[0].succeed()
    await asyncio.sleep(10)
    said = [(one.beat.state, one.beat.running, one.beat.busy) for one in broker.sent]
    assert said == [
        ("ready", (RunningAttempt("uid-k.1", "k.1"),), 2),
        ("draining", (RunningAttempt("uid-k.1", "k.1", 39, "resizing"),), 2),
        ("draining", (), 1),
    ]
    await life.cut_short()


async def test_one_that_never_took_work_only_says_good_bye(broker: FakeBroker) -> None:
    life = Life(broker)
    await asyncio.sleep(5)
    life.worker.stop()
    assert await life.task
    assert life.states == [(5, "stopped")]


# What runs.


async def test_it_tells_that_it_has_become_busy_and_idle_again(broker: FakeBroker) -> None:
    life = Life(broker)
    await asyncio.sleep(62)
    life.deliver(BasicProperties())
    await asyncio.sleep(1)
    life.deliver(work())
    await asyncio.sleep(2)
    life.executor.started[0].succeed()
    life.executor.started[1].succeed()
    await asyncio.sleep(1)
    said = [(at, one.beat.busy) for at, one in zip(broker.times, broker.sent, strict=True)]
    assert said == [(60, 0), (62.1, 1), (65.1, 0)]
    await life.cut_short()


async def test_an_end_that_is_told_is_not_what_it_is_busy_with(broker: FakeBroker) -> None:
    life = Life(broker)
    life.deliver(work(timeout_seconds=20))
    await asyncio.sleep(61)
    assert (broker.sent[0].beat.running, broker.sent[0].beat.busy) == ((), 0)
    assert life.worker._runtime.busy == 1, "its slot is taken"
    await life.cut_short()


async def test_one_slot_without_a_pause_is_not_told_all_the_time(broker: FakeBroker) -> None:
    life = Life(broker, slots=1)
    await asyncio.sleep(61)
    for _ in range(3_000):
        life.deliver(BasicProperties(type="resize"))
        await asyncio.sleep(0.002)
        life.executor.started[-1].succeed()
    assert len(broker.sent) <= 5
    await life.cut_short()


# Drained.


async def test_a_drained_worker_waits_for_its_signal_and_says_that_it_has_stopped(
    broker: FakeBroker,
) -> None:
    life = Life(broker)
    await asyncio.sleep(75)
    life.worker.drain()
    await asyncio.sleep(25)
    assert life.states[2:] == [(75, "draining"), (75, "stopped"), (85, "stopped"), (95, "stopped")]
    assert not life.task.done()
    life.worker.stop()
    assert await asyncio.wait_for(life.task, 0.01)
    assert len(life.states) == 6, "all was said"


async def test_without_a_signal_it_ends_by_itself(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(broker, drained_seconds=25.0)
    await asyncio.sleep(75)
    life.worker.drain()
    assert await life.task
    assert asyncio.get_running_loop().time() == pytest.approx(100)
    assert [at for at, state in life.states if state == "stopped"] == [75, 85, 95, 100]
    assert caplog.records[-1].getMessage() == "worker.not_removed"


async def test_one_that_is_not_to_wait_does_not(broker: FakeBroker) -> None:
    life = Life(broker, drained_seconds=0.0)
    await asyncio.sleep(75)
    life.worker.drain()
    assert await asyncio.wait_for(life.task, 0.01)


async def test_a_drain_has_all_the_time_its_attempts_have(broker: FakeBroker) -> None:
    life = Life(broker, grace_seconds=1.0)
    await asyncio.sleep(61)
    life.deliver(work(timeout_seconds=3_600))
    life.worker.drain()
    await asyncio.sleep(1_000)
    assert {state for at, state in life.states if at > 61} == {"draining"}
    life.executor.started[0].succeed()
    await asyncio.sleep(1)
    assert life.states[-1][1] == "draining", "its outcome is not confirmed"
    life.publisher.settle()
    await asyncio.sleep(0.01)
    assert life.states[-1] == (1_062, "stopped")
    assert life.channel.settled == [("ack", 1, False)]
    await life.cut_short()


async def test_a_drained_worker_takes_nothing_more(broker: FakeBroker) -> None:
    life = Life(broker)
    await asyncio.sleep(61)
    life.worker.drain()
    await asyncio.sleep(5)
    life.deliver(work())
    assert life.executor.started == []
    assert [each.event.kind for each in life.publisher.published] == ["task.released"]
    await life.cut_short()


async def test_a_signal_during_a_drain_begins_the_grace_period_and_ends_without_waiting(
    broker: FakeBroker,
) -> None:
    life = Life(broker)
    await asyncio.sleep(61)
    life.deliver(BasicProperties())
    life.worker.drain()
    await asyncio.sleep(100)
    life.worker.stop()
    assert not await life.task
    assert asyncio.get_running_loop().time() == pytest.approx(191, abs=0.1)
    assert life.states[-1] == (191, "stopped")
    assert life.channel.settled == [("nack", 1, True)]


async def test_one_that_never_took_work_says_that_it_is_drained(broker: FakeBroker) -> None:
    life = Life(broker)
    await asyncio.sleep(5)
    life.worker.drain()
    await asyncio.sleep(21)
    assert life.states == [(5, "stopped"), (15, "stopped"), (25, "stopped")]
    await life.cut_short()


async def test_it_is_alive_and_not_ready_whatever_holds_its_slots(broker: FakeBroker) -> None:
    life = Life(broker, slots=1)
    life.deliver(work(timeout_seconds=1))
    await asyncio.sleep(61)
    assert "all 1 slots are held" in (life.worker.unhealthy() or "")
    life.worker.drain()
    assert (life.worker.unhealthy(), life.worker.unready()) == (None, "draining")
    await asyncio.sleep(1)
    life.publisher.settle()
    await asyncio.sleep(1)
    assert (life.worker.unhealthy(), life.worker.unready()) == (None, "drained")
    life.worker._consuming.registered = False
    await asyncio.sleep(30)
    assert life.worker.unhealthy() is None
    await life.cut_short()


async def test_a_signal_makes_it_unready_too(broker: FakeBroker) -> None:
    life = Life(broker)
    await asyncio.sleep(61)
    assert life.worker.unready() is None
    life.deliver(work(timeout_seconds=300))
    life.worker.stop()
    assert life.worker.unready() == "stopping"
    await life.cut_short()
