"""Heartbeats of a real worker, and a broker that refuses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import connect
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.heartbeat import Heartbeat, decode, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE, HEARTBEATS_QUEUE
from taskqueue.contract.outcome import EventKind
from taskqueue.model.command import CommandKind
from taskqueue.model.worker import WorkerState
from taskqueue.worker.cpus import available_cpus
from tests.integration.worker.harness import Harness
from tests.integration.worker.process import PATIENCE

pytestmark = pytest.mark.broker


@dataclass
class Register:
    """Everything that comes into the operator's queue of heartbeats."""

    heartbeats: list[Heartbeat] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def of(cls, harness: Harness) -> Register:
        register = cls()
        channel = await harness.connection.channel()
        await channel.consume(HEARTBEATS_QUEUE, register._on_delivery, lambda reason: None)
        return register

    async def wait(self, until: Callable[[Heartbeat], bool]) -> Heartbeat:
        """Return the first heartbeat of which ``until`` holds."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for heartbeat in self.heartbeats:
                    if until(heartbeat):
                        return heartbeat
                self._more.clear()
                await self._more.wait()

    async def state(self, state: WorkerState) -> Heartbeat:
        """Return the first heartbeat with this state."""
        return await self.wait(lambda heartbeat: heartbeat.state is state)

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        self.deliveries.append(delivery)
        self.heartbeats.append(decode(delivery.body))
        self._more.set()


async def test_a_worker_registers_itself(harness: Harness) -> None:
    register = await Register.of(harness)
    await harness.ready_worker(slots=3, NODE_NAME="node-7")
    heartbeat = await register.state(WorkerState.READY)
    assert (heartbeat.namespace, heartbeat.queue, heartbeat.pod, heartbeat.node) == (
        "shop",
        "q",
        "pod-1",
        "node-7",
    )
    assert (heartbeat.slots, heartbeat.cpus, heartbeat.running) == (3, available_cpus(), ())
    assert {"echo", "hold", "async_hold"} <= set(heartbeat.handlers)
    (delivery,) = register.deliveries
    assert delivery.routing_key == "shop.q.worker.heartbeat"
    assert delivery.properties.delivery_mode == 1


async def test_one_that_waits_for_its_queue_does_not(empty_harness: Harness) -> None:
    harness = empty_harness
    await harness.declare()
    await harness.channel.delete_queue("taskqueue.shop.q")
    register = await Register.of(harness)
    worker = await harness.start_worker()
    await worker.logged("consumer.lost")
    worker.terminate()
    await worker.ended()
    other = Heartbeat(
        namespace="shop",
        queue="q",
        pod="pod-2",
        node="",
        cpus=1.0,
        slots=1,
        handlers=(),
        running=(),
        state=WorkerState.READY,
    )
    harness.channel.publish(
        HEARTBEATS_EXCHANGE, other.routing_key, encode(other), harness.properties()
    )
    await register.wait(
        lambda heartbeat: heartbeat.pod == "pod-2"
    )  # what came before it is known now
    assert {heartbeat.state for heartbeat in register.heartbeats if heartbeat.pod == "pod-1"} <= {
        WorkerState.STOPPED
    }


async def test_a_draining_worker_reports_what_it_runs_with_progress(harness: Harness) -> None:
    register, gate = await Register.of(harness), harness.gate()
    worker = await harness.ready_worker()
    await register.state(WorkerState.READY)
    token = await harness.publish("report_progress", gate.payload)
    await gate.wait_until_started()
    worker.terminate()
    draining = await register.state(WorkerState.DRAINING)
    (running,) = draining.running
    assert (running.token, running.percent, running.message) == (token, 40, "resizing")
    gate.open()
    stopped = await register.state(WorkerState.STOPPED)
    assert stopped.running == ()
    assert await worker.ended() == 0
    assert [heartbeat.state for heartbeat in register.heartbeats] == [
        "ready",
        "draining",
        "stopped",
    ]


async def test_a_drained_worker_says_so_until_its_signal_comes(harness: Harness) -> None:
    register, gate = await Register.of(harness), harness.gate()
    worker = await harness.ready_worker()
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    await harness.send_commands(WorkerCommand(CommandKind.DRAIN, namespace="shop", pod="pod-1"))
    draining = await register.state(WorkerState.DRAINING)
    assert (len(draining.running), draining.busy) == (1, 1)
    gate.open()
    stopped = await register.state(WorkerState.STOPPED)
    assert (stopped.running, stopped.busy) == ((), 0)
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    await harness.until_ready(0)
    await register.wait(
        lambda heartbeat: heartbeat.state is WorkerState.STOPPED and heartbeat is not stopped
    )
    worker.terminate()
    assert await worker.ended() == 0
    assert register.heartbeats[-1].state is WorkerState.STOPPED


async def test_a_direct_message_is_reported_when_it_starts_and_ends(
    harness: Harness,
) -> None:
    register, gate = await Register.of(harness), harness.gate()
    await harness.ready_worker()
    await register.state(WorkerState.READY)
    await harness.send(BasicProperties(type="hold"), json.dumps(gate.payload).encode())
    busy = await register.wait(lambda heartbeat: heartbeat.busy == 1)
    assert (busy.running, busy.state) == ((), WorkerState.READY)
    register.heartbeats.clear()
    gate.open()
    await register.wait(lambda heartbeat: heartbeat.busy == 0)


async def test_the_last_heartbeat_survives_a_reconnect(harness: Harness) -> None:
    register = await Register.of(harness)
    worker = await harness.ready_worker()
    await register.state(WorkerState.READY)
    await harness.close_connections()
    await worker.logged("consumer.registered", times=2)
    await harness.outcome(await harness.publish("noop"))
    worker.terminate()
    await register.state(WorkerState.STOPPED)
    assert await worker.ended() == 0


# Without.


async def test_a_broker_without_the_exchange_gets_its_outcomes_all_the_same(
    empty_harness: Harness,
) -> None:
    harness = empty_harness
    await harness.declare()
    await harness.read_inbox()
    await asyncio.to_thread(
        harness.vhost.management.request,
        "DELETE",
        "exchanges",
        harness.vhost.name,
        HEARTBEATS_EXCHANGE,
    )
    worker = await harness.ready_worker()
    logged = await worker.logged("heartbeat.not_sent")
    assert "404 NOT_FOUND - no exchange 'taskqueue.heartbeats'" in logged["reason"]
    outcome = await harness.outcome(await harness.publish("noop"))
    assert outcome.kind is EventKind.SUCCEEDED
    worker.terminate()
    assert await worker.ended() == 0
    assert [line["event"] for line in worker.log].count("heartbeat.not_sent") == 1
    assert not [line for line in worker.log if line["event"] == "publisher.lost"]


async def test_a_user_without_permission_reports_its_outcomes_all_the_same(
    harness: Harness,
) -> None:
    permit(harness, r"^elsewhere\.")
    register = await Register.of(harness)
    worker = await harness.ready_worker()
    outcome = await harness.outcome(await harness.publish("noop"))
    assert outcome.kind is EventKind.SUCCEEDED
    worker.terminate()
    assert await worker.ended() == 0
    logged = await worker.logged("heartbeat.not_sent")
    assert "403 ACCESS_REFUSED" in logged["reason"]
    assert [line["event"] for line in worker.log].count("heartbeat.not_sent") == 1
    assert not [line for line in worker.log if line["event"] == "publisher.lost"]
    assert register.heartbeats == []


async def test_no_worker_speaks_for_another_queue(harness: Harness) -> None:
    own = await connect(harness.worker_parameters, name="worker")
    for key, verdict in (
        ("shop.q.worker.heartbeat", Settled.CONFIRMED),
        ("shop.mail.worker.heartbeat", Settled.UNKNOWN),
    ):
        publisher = await Publisher.open(own)
        settled = await publisher.publish_and_wait(
            HEARTBEATS_EXCHANGE, key, b"{}", harness.properties()
        )
        assert settled[0] is verdict
    await own.close()


def permit(harness: Harness, key: str) -> None:
    """Let the worker's user publish heartbeats with such keys only."""
    body = {"exchange": HEARTBEATS_EXCHANGE, "write": key, "read": "^$"}
    harness.vhost.management.request(
        "PUT",
        "topic-permissions",
        harness.vhost.name,
        harness.worker_parameters.username,
        body=body,
    )
