"""A worker from its first heartbeat to its last, drained or not; virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel
from taskqueue.amqp.publisher import Settled
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.worker import worker
from taskqueue.worker.runtime import Runtime
from taskqueue.worker.sdk import Progress
from tests.unit.worker.fakes import FakeChannel as FakeDeliveries
from tests.unit.worker.fakes import FakeExecutor, FakePublisher, settings, work
from tests.unit.worker.test_heartbeat_sender import FakeBroker, FakeConnection

pytestmark = pytest.mark.looptime


class FakeOutcomePublisher:
    """An outcome publisher that always has a connection."""

    broker = FakeBroker()

    def __init__(self, *_: object, **__: object) -> None:
        self.connection = FakeConnection(self.broker)

    async def run(self) -> None:
        await asyncio.Event().wait()


class FakeConsumer:
    """A consumer that is registered after 60 s."""

    def __init__(self, *_: object, runtime: Runtime, **__: object) -> None:
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

    def notify(self) -> None: ...


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    broker = FakeBroker()
    monkeypatch.setattr(FakeOutcomePublisher, "broker", broker)
    monkeypatch.setattr(worker, "OutcomePublisher", FakeOutcomePublisher)
    monkeypatch.setattr(worker, "Consumer", FakeConsumer)
    return broker


class WorkerHarness:
    """A worker that takes work after 60 s, with a fake broker and handlers."""

    def __init__(
        self,
        broker: FakeBroker,
        *,
        start: Callable[[], Awaitable[Any]] | None = None,
        start_failure: Callable[[], str] = str,
        **changes: float,
    ) -> None:
        self.broker = broker
        self.executor = FakeExecutor()
        self.publisher = FakePublisher()
        self.worker = worker.WorkerService(
            settings(**{"node": "node-1", "grace_seconds": 30.0, "health_port": 0, **changes}),
            self.executor,
            handlers=("resize", "fetch"),
            start=start,
            start_failure=start_failure,
        )
        self.worker._outbox.attach(self.publisher.real)
        self.channel = FakeDeliveries()
        self.worker._runtime.on_channel_opened(cast(Channel, self.channel))
        self.task = asyncio.create_task(self.worker.run())

    def deliver(self, message: WorkMessage | BasicProperties) -> None:
        self.worker._runtime.on_delivery(self.channel.deliver(message))

    @property
    def states(self) -> list[tuple[float, str]]:
        """When it said what it does."""
        return list(
            zip(self.broker.times, (one.heartbeat.state for one in self.broker.sent), strict=True)
        )

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_a_worker_registers_when_it_takes_work_and_sends_a_last_heartbeat(
    broker: FakeBroker,
) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(75)
    harness.worker.stop()
    assert await harness.task
    assert harness.states == [(60, "ready"), (70, "ready"), (75, "draining"), (75, "stopped")]
    heartbeat = broker.sent[0].heartbeat
    assert (heartbeat.namespace, heartbeat.queue, heartbeat.pod, heartbeat.node) == (
        "shop",
        "q",
        "pod-1",
        "node-1",
    )
    assert (heartbeat.slots, heartbeat.handlers) == (2, ("fetch", "resize"))
    assert (heartbeat.running, heartbeat.busy) == ((), 0)
    assert heartbeat.cpus >= 1


async def test_heartbeats_report_running_attempts_with_progress_until_they_end(
    broker: FakeBroker,
) -> None:
    harness = WorkerHarness(broker)
    harness.deliver(work("k.1", timeout_seconds=300))
    harness.deliver(BasicProperties())
    await asyncio.sleep(61)
    harness.executor.started[0].progress = Progress(39.6, "resizing")
    harness.worker.drain()
    await asyncio.sleep(1)
    harness.executor.started[0].succeed()
    await asyncio.sleep(10)
    said = [(one.heartbeat.state, one.heartbeat.running, one.heartbeat.busy) for one in broker.sent]
    assert said == [
        ("ready", (RunningAttempt("uid-k.1", "k.1", attempt=1, epoch=0),), 2),
        ("draining", (RunningAttempt("uid-k.1", "k.1", 39, "resizing", attempt=1, epoch=0),), 2),
        ("draining", (), 1),
    ]
    await harness.cancel()


async def test_one_that_never_took_work_only_sends_a_last_heartbeat(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(5)
    harness.worker.stop()
    assert await harness.task
    assert harness.states == [(5, "stopped")]


# What runs.


async def test_heartbeats_report_busy_and_idle(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(62)
    harness.deliver(BasicProperties())
    await asyncio.sleep(1)
    harness.deliver(work())
    await asyncio.sleep(2)
    harness.executor.started[0].succeed()
    harness.executor.started[1].succeed()
    await asyncio.sleep(1)
    said = [(at, one.heartbeat.busy) for at, one in zip(broker.times, broker.sent, strict=True)]
    assert said == [(60, 0), (62.1, 1), (65.1, 0)]
    await harness.cancel()


async def test_a_worker_that_is_connected_again_says_at_once_what_it_runs(
    broker: FakeBroker,
) -> None:
    harness = WorkerHarness(broker)
    harness.deliver(work("k.1", timeout_seconds=600))
    await asyncio.sleep(63)
    harness.worker._on_publisher_ready()
    await asyncio.sleep(1)
    assert broker.times == [60, 63]
    assert [one.token for one in broker.sent[-1].heartbeat.running] == ["k.1"]
    started = [one.event.kind for one in harness.publisher.published]
    assert started == [EventKind.STARTED, EventKind.STARTED]
    await harness.cancel()


async def test_an_attempt_whose_end_is_decided_does_not_count_as_busy(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker)
    harness.deliver(work(timeout_seconds=20))
    await asyncio.sleep(61)
    assert (broker.sent[0].heartbeat.running, broker.sent[0].heartbeat.busy) == ((), 0)
    assert harness.worker._runtime.busy == 1, "its slot is taken"
    await harness.cancel()


async def test_one_slot_without_a_pause_sends_few_heartbeats(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker, slots=1)
    await asyncio.sleep(61)
    for _ in range(3_000):
        harness.deliver(BasicProperties(type="resize"))
        await asyncio.sleep(0.002)
        harness.executor.started[-1].succeed()
    assert len(broker.sent) <= 5
    await harness.cancel()


# Drained.


async def test_a_drained_worker_waits_for_its_signal_and_reports_that_it_has_stopped(
    broker: FakeBroker,
) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(75)
    harness.worker.drain()
    await asyncio.sleep(25)
    assert harness.states[2:] == [
        (75, "draining"),
        (75, "stopped"),
        (85, "stopped"),
        (95, "stopped"),
    ]
    assert not harness.task.done()
    harness.worker.stop()
    assert await asyncio.wait_for(harness.task, 0.01)
    assert len(harness.states) == 6, "all was sent"


async def test_without_a_signal_it_ends_by_itself(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    harness = WorkerHarness(broker, drained_seconds=25.0)
    await asyncio.sleep(75)
    harness.worker.drain()
    assert await harness.task
    assert asyncio.get_running_loop().time() == pytest.approx(100)
    assert [at for at, state in harness.states if state == "stopped"] == [75, 85, 95, 100]
    assert caplog.records[-1].getMessage() == "worker.not_removed"


async def test_a_drained_worker_with_no_wait_ends_at_once(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker, drained_seconds=0.0)
    await asyncio.sleep(75)
    harness.worker.drain()
    assert await asyncio.wait_for(harness.task, 0.01)


async def test_a_drain_has_all_the_time_its_attempts_have(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker, grace_seconds=1.0)
    await asyncio.sleep(61)
    harness.deliver(work(timeout_seconds=3_600))
    harness.worker.drain()
    await asyncio.sleep(1_000)
    assert {state for at, state in harness.states if at > 61} == {"draining"}
    harness.executor.started[0].succeed()
    await asyncio.sleep(1)
    assert harness.states[-1][1] == "draining", "its outcome is not confirmed"
    harness.publisher.settle()
    await asyncio.sleep(0.01)
    assert harness.states[-1] == (1_062, "stopped")
    assert harness.channel.settled == [("ack", 1, False)]
    await harness.cancel()


async def test_a_drained_worker_takes_nothing_more(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(61)
    harness.worker.drain()
    await asyncio.sleep(5)
    harness.deliver(work())
    assert harness.executor.started == []
    assert [each.event.kind for each in harness.publisher.published] == ["task.released"]
    await harness.cancel()


async def test_a_signal_during_a_drain_begins_the_grace_period_and_ends_without_waiting(
    broker: FakeBroker,
) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(61)
    harness.deliver(BasicProperties())
    harness.worker.drain()
    await asyncio.sleep(100)
    harness.worker.stop()
    assert not await harness.task
    assert asyncio.get_running_loop().time() == pytest.approx(191, abs=0.1)
    assert harness.states[-1] == (191, "stopped")
    assert harness.channel.settled == [("nack", 1, True)]


async def test_a_signal_ends_one_whose_task_queue_is_deleted_long_before_its_grace_period(
    broker: FakeBroker,
) -> None:
    harness = WorkerHarness(broker, grace_seconds=3600.0)
    harness.deliver(work("k.1", timeout_seconds=300))
    await asyncio.sleep(61)
    harness.executor.started[0].succeed()
    harness.worker.stop()
    while not harness.task.done():
        harness.publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
        await asyncio.sleep(5)
    assert asyncio.get_running_loop().time() < 61 + 60
    assert not harness.channel.settled  # the broker keeps the message, if it has the queue


async def test_one_that_never_took_work_reports_that_it_is_drained(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(5)
    harness.worker.drain()
    await asyncio.sleep(21)
    assert harness.states == [(5, "stopped"), (15, "stopped"), (25, "stopped")]
    await harness.cancel()


async def test_it_is_alive_and_not_ready_whatever_holds_its_slots(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker, slots=1)
    harness.deliver(work(timeout_seconds=1))
    await asyncio.sleep(61)
    assert "all 1 slots are held" in (harness.worker.unhealthy() or "")
    harness.worker.drain()
    assert (harness.worker.unhealthy(), harness.worker.unready()) == (None, "draining")
    await asyncio.sleep(1)
    harness.publisher.settle()
    await asyncio.sleep(1)
    assert (harness.worker.unhealthy(), harness.worker.unready()) == (None, "drained")
    harness.worker._consumer.registered = False
    await asyncio.sleep(30)
    assert harness.worker.unhealthy() is None
    await harness.cancel()


@pytest.mark.parametrize("amqp", [False, True], ids=["the loop's", "amqp's"])
async def test_it_is_to_be_restarted_after_a_callback_of_its_own_has_raised(
    broker: FakeBroker, amqp: bool
) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(61)
    loop, error = asyncio.get_running_loop(), ZeroDivisionError("odd")
    loop.call_exception_handler({"message": "never retrieved", "exception": error, "task": None})
    assert harness.worker.unhealthy() is None
    if amqp:
        Channel._report(cast(Channel, SimpleNamespace(_loop=loop)), "on_delivery failed", error)
    else:
        loop.call_soon(lambda: 1 // 0)
    await asyncio.sleep(1)
    assert "ZeroDivisionError" in (harness.worker.unhealthy() or "")
    await harness.cancel()


async def test_a_signal_makes_it_unready_too(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker)
    await asyncio.sleep(61)
    assert harness.worker.unready() is None
    harness.deliver(work(timeout_seconds=300))
    harness.worker.stop()
    assert harness.worker.unready() == "stopping"
    await harness.cancel()


async def test_it_takes_nothing_and_is_not_ready_until_the_start_hooks_have_succeeded(
    broker: FakeBroker,
) -> None:
    succeed, reasons = asyncio.Event(), [""]
    harness = WorkerHarness(broker, start=succeed.wait, start_failure=lambda: reasons[0])
    await asyncio.sleep(1)
    assert harness.worker.unready() == "the @on_start hooks have not finished"
    reasons[0] = "OSError: no database"
    await asyncio.sleep(1000)
    assert harness.worker.unready() == "an @on_start hook failed: OSError: no database"
    assert harness.worker.unhealthy() is None, "a restart would not help"
    assert harness.states == []
    reasons[0] = ""
    succeed.set()
    await asyncio.sleep(61)
    assert harness.worker.unready() is None
    reasons[0] = "OSError: again"  # in a child that was made later
    assert harness.worker.unready() == "an @on_start hook failed: OSError: again"
    assert harness.worker.unhealthy() is None
    harness.worker.stop()
    assert await harness.task


async def test_a_signal_ends_one_whose_start_hooks_do_not_succeed(broker: FakeBroker) -> None:
    harness = WorkerHarness(broker, start=asyncio.Event().wait)
    await asyncio.sleep(1)
    harness.worker.stop()
    assert await harness.task
