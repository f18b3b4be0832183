"""The operator's side of the broker, as the test does it: work goes out, outcomes come back."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract import batch
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.command import FIRST_COMMAND, WorkerCommand, command_message
from taskqueue.contract.names import INBOX_QUEUE, WORK_EXCHANGE, work_queue
from taskqueue.contract.outcome import AttemptEvent, EventKind, decode
from taskqueue.contract.topology import declare_operator_topology, declare_task_queue
from taskqueue.contract.work import WorkMessage
from tests.integration.amqp.endpoint import VirtualHost
from tests.integration.worker.process import HANDLERS, PATIENCE, WorkerProcess

QUEUE = work_queue("shop", "q")
DEAD_QUEUE = "taskqueue-dead.shop.q"

#: Outcomes that end an attempt.
ENDS = {EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED, EventKind.RELEASED}


@dataclass
class Gate:
    """Where a held handler notes that it runs, and what it waits for."""

    runs: Path
    gate: Path

    @property
    def payload(self) -> dict[str, str]:
        return {"runs": str(self.runs), "gate": str(self.gate)}

    def open(self) -> None:
        self.gate.touch()

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.runs.read_text().split()] if self.runs.exists() else []

    async def wait_until_started(self, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.pids) < times:  # noqa: ASYNC110 - another process writes the file
                await asyncio.sleep(0.01)


@dataclass
class Harness:
    """One virtual host with the topology, a publisher, the inbox, and the workers started on it."""

    vhost: VirtualHost
    folder: Path
    worker_parameters: BrokerParameters
    connection: Connection
    publisher: Publisher
    channel: Channel
    events: list[AttemptEvent] = field(default_factory=list)
    workers: list[WorkerProcess] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    async def declare(self) -> None:
        await declare_operator_topology(self.connection)
        await declare_task_queue(self.connection, "shop", "q")
        await self.send_commands(FIRST_COMMAND)

    async def read_inbox(self) -> None:
        channel = await self.connection.channel()
        await channel.consume(INBOX_QUEUE, self._on_delivery, lambda reason: None)

    async def start_worker(
        self,
        *,
        slots: int = 1,
        broker: BrokerParameters | None = None,
        arguments: Sequence[str] = (HANDLERS,),
        **environment: str,
    ) -> WorkerProcess:
        worker = await WorkerProcess.start(
            broker or self.worker_parameters,
            slots=slots,
            environment=environment,
            arguments=arguments,
        )
        self.workers.append(worker)
        return worker

    async def ready_worker(self, **how: Any) -> WorkerProcess:
        """Start a worker as `start_worker` does, and wait until it takes work."""
        worker = await self.start_worker(**how)
        await worker.logged("consumer.registered")
        return worker

    def gate(self, name: str = "gate") -> Gate:
        return Gate(self.folder / f"{name}.runs", self.folder / name)

    async def publish(
        self, handler: str, payload: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """Publish a work message and return its token."""
        token = f"k.{uuid.uuid4().hex}"
        values: dict[str, Any] = {
            "namespace": "shop",
            "queue": "q",
            "task": f"task-{token[-6:]}",
            "uid": uuid.uuid4().hex,
            "handler": handler,
            "attempt": 1,
            "max_attempts": 3,
            "epoch": 0,
            "token": token,
            "max_deliveries": 3,
            "timeout_seconds": 60,
            "body": json.dumps(payload or {}).encode(),
        }
        message = WorkMessage(**{**values, **changes})
        await self.send(message.properties(), message.body)
        return message.token

    def properties(self) -> BasicProperties:
        return BasicProperties(message_id=uuid.uuid4().hex, delivery_mode=2)

    async def send(self, properties: BasicProperties, body: bytes) -> None:
        """Publish anything to the work queue's key."""
        properties.message_id = uuid.uuid4().hex
        verdict = await self.publisher.publish_and_wait(WORK_EXCHANGE, "shop.q", body, properties)
        assert verdict[0] is Settled.CONFIRMED

    async def send_commands(self, *commands: WorkerCommand) -> None:
        """Publish commands to the control stream and wait until it has them."""
        left = len(commands)
        done = asyncio.Event()

        def settled(verdict: Settled, text: str) -> None:
            nonlocal left
            assert verdict is Settled.CONFIRMED, text
            left -= 1
            if not left:
                done.set()

        for command in commands:
            message = command_message(command)
            self.publisher.publish(
                message.exchange, message.key, message.body, message.properties(), settled
            )
        async with asyncio.timeout(PATIENCE):
            await done.wait()

    async def direct_outcome(self, correlation_id: str) -> AttemptEvent:
        """Wait for the end of a direct message."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.events:
                    if event.is_direct and event.correlation_id == correlation_id:
                        return event
                self._more.clear()
                await self._more.wait()

    async def outcome(self, token: str, kind: EventKind | None = None) -> AttemptEvent:
        """Wait for an outcome of the token: of that kind, or whichever ends the attempt."""
        kinds = ENDS if kind is None else {kind}
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.events:
                    if event.token == token and event.kind in kinds:
                        return event
                self._more.clear()
                await self._more.wait()

    def reported(self, token: str) -> list[EventKind]:
        return [event.kind for event in self.events if event.token == token]

    async def ready(self, queue: str = QUEUE) -> int:
        return await self.channel.declare_queue(queue, passive=True)

    async def until_ready(self, count: int, queue: str = QUEUE) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.ready(queue) != count:  # noqa: ASYNC110 - the broker has to be polled
                await asyncio.sleep(0.02)

    async def close_connections(self) -> None:
        """Close the worker's connections from the broker's side, once it lists them."""
        closed: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while len(closed) < 2:
                for connection in await asyncio.to_thread(self._list_connections):
                    name = connection["name"]
                    if name not in closed and connection["user"] == self.worker_parameters.username:
                        await asyncio.to_thread(
                            self.vhost.management.request, "DELETE", "connections", name
                        )
                        closed.add(name)

    async def heartbeats(self) -> set[int]:
        """The intervals the worker's connections agreed on, once the broker lists them."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await asyncio.to_thread(self._list_connections)
                ours = [each for each in found if each["user"] == self.worker_parameters.username]
                if len(ours) == 2 and all("timeout" in each for each in ours):
                    return {int(each["timeout"]) for each in ours}

    def _list_connections(self) -> list[dict[str, str]]:
        found = self.vhost.management.request("GET", "vhosts", self.vhost.name, "connections")
        return [connection for connection in found if "user" in connection]

    async def dead_letter(self) -> Delivery:
        """Wait for a message in the queue of given-up ones and return it."""
        channel = await self.connection.channel()
        found: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()

        def take(delivery: Delivery) -> None:
            if not found.done():
                found.set_result(delivery)

        await channel.consume(DEAD_QUEUE, take, lambda reason: None)
        async with asyncio.timeout(PATIENCE):
            delivery = await found
        await channel.close()
        return delivery

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        content_type, body = delivery.properties.content_type, delivery.body
        if content_type in (CONTENT_TYPE, batch.CONTENT_TYPE):
            bodies = [body] if content_type == CONTENT_TYPE else batch.split(body)
            self.events += map(decode, bodies)
            self._more.set()
