"""A virtual host with the topology of the contract, where the suite acts as the operator.

Scenarios share one, each with its own TaskQueue and broker user. A scenario that removes a part of
the topology gets its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import urllib.error
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import FIRST_COMMAND, WorkerCommand, command_message
from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    dead_queue,
    events_key,
)
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.contract.topology import declare_operator_topology, declare_task_queue
from taskqueue.model.command import CommandKind
from tests.conformance.heartbeats import HeartbeatLog
from tests.conformance.inbox import Inbox
from tests.integration.amqp.endpoint import Endpoint, Management

NAMESPACE = "conformance"

#: Between two polls of what the broker does not push, in seconds.
POLL_SECONDS = 0.05


@dataclass
class BrokerEnv:
    """One virtual host, with the operator's connection to it."""

    name: str
    management: Management
    parameters: BrokerParameters
    connection: Connection
    channel: Channel
    publisher: Publisher
    inbox: Inbox
    heartbeats: HeartbeatLog

    async def open(self) -> None:
        """Declare the operator's topology, read the inbox, and listen to heartbeats."""
        await declare_operator_topology(self.connection)
        await self.send_commands(FIRST_COMMAND)
        await self.inbox.open(self.connection)
        await self.heartbeats.open(self.connection)

    async def add_queue(self, queue: str) -> None:
        """Declare a TaskQueue's part of the topology."""
        await declare_task_queue(self.connection, NAMESPACE, queue)

    async def add_user(self, queue: str) -> BrokerParameters:
        """Create the broker user of a TaskQueue's workers, with only the permissions they need."""
        user, password = f"{self.name}-{queue}", uuid.uuid4().hex
        await asyncio.to_thread(self._make_user, user, password, queue)
        return dataclasses.replace(self.parameters, username=user, password=password)

    def _make_user(self, user: str, password: str, queue: str) -> None:
        self.management.request("PUT", "users", user, body={"password": password, "tags": ""})
        self.management.permit(
            self.name,
            user,
            configure="^$",
            write=r"^taskqueue\.(outcomes|dead|heartbeats)$",
            read=rf"^taskqueue\.({NAMESPACE}\.{queue}|control)$",
        )
        for exchange, key in (
            (OUTCOMES_EXCHANGE, rf"^{NAMESPACE}\.{queue}\."),
            ("taskqueue.heartbeats", rf"^{NAMESPACE}\.{queue}\."),
            (DEAD_EXCHANGE, rf"^{NAMESPACE}\.{queue}$"),
        ):
            body = {"exchange": exchange, "write": key, "read": "^$"}
            self.management.request("PUT", "topic-permissions", self.name, user, body=body)

    async def set_password(self, user: str, password: str) -> None:
        """Change a user's password; connections that are open stay so."""
        body = {"password": password, "tags": ""}
        await asyncio.to_thread(self.management.request, "PUT", "users", user, body=body)

    async def remove_user(self, user: str) -> None:
        """Delete a user, if it exists."""
        with suppress(urllib.error.HTTPError):
            await asyncio.to_thread(self.management.request, "DELETE", "users", user)

    async def close_connections(self, user: str) -> None:
        """Close all connections of a user from the broker's side."""
        await asyncio.to_thread(self.management.request, "DELETE", "connections", "username", user)

    async def send(
        self, queue: str, properties: BasicProperties, body: bytes, *, exchange: str = WORK_EXCHANGE
    ) -> None:
        """Publish anything as work."""
        key = f"{NAMESPACE}.{queue}"
        verdict = await self.publisher.publish_and_wait(exchange, key, body, properties)
        assert verdict[0] is Settled.CONFIRMED, verdict

    async def send_commands(self, *commands: WorkerCommand) -> None:
        """Publish commands, and wait until the stream has them."""
        await asyncio.gather(*(self._publish(command_message(command)) for command in commands))

    async def send_raw_command(self, body: bytes) -> None:
        """Publish any body to the command stream."""
        command = command_message(WorkerCommand(CommandKind.CANCEL, token="k"))
        await self._publish(dataclasses.replace(command, body=body))

    async def _publish(self, message: OutgoingMessage) -> None:
        verdict = await self.publisher.publish_and_wait(
            message.exchange, message.key, message.body, message.properties()
        )
        assert verdict[0] is Settled.CONFIRMED, verdict

    async def ready(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return await self.channel.declare_queue(queue, passive=True)

    async def wait_for_ready(self, queue: str, count: int) -> None:
        """Wait until ``count`` messages wait in a queue."""
        while await self.ready(queue) != count:  # noqa: ASYNC110 - the broker only answers polls
            await asyncio.sleep(POLL_SECONDS)

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange, as somebody does by hand."""
        await asyncio.to_thread(self.management.request, "DELETE", "exchanges", self.name, name)

    async def declare_again(self, queue: str) -> None:
        """Declare what is missing of the operator's topology, and of a TaskQueue's."""
        await declare_operator_topology(self.connection)
        await self.add_queue(queue)

    async def unbind_inbox(self, queue: str) -> None:
        """Unbind the inbox, so that the broker returns outcomes to a TaskQueue's workers."""
        await self.channel.unbind_queue(
            INBOX_QUEUE, OUTCOMES_EXCHANGE, events_key(NAMESPACE, queue)
        )

    async def bind_inbox(self, queue: str) -> None:
        """Bind the inbox again."""
        await self.channel.bind_queue(INBOX_QUEUE, OUTCOMES_EXCHANGE, events_key(NAMESPACE, queue))

    async def dead_letter(self, queue: str) -> Delivery:
        """Wait for a dead letter of a TaskQueue, and remove it from the queue."""
        channel = await self.connection.channel()
        found: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()

        def on_delivery(delivery: Delivery) -> None:
            if not found.done():
                found.set_result(delivery)
                delivery.channel.ack(delivery.delivery_tag)

        try:
            await channel.set_prefetch(1)
            await channel.consume(dead_queue(NAMESPACE, queue), on_delivery, lambda reason: None)
            return await found
        finally:
            await channel.close()


@asynccontextmanager
async def open_broker_env(broker: Endpoint) -> AsyncIterator[BrokerEnv]:
    """Create a virtual host without any topology, and delete it at the end."""
    name = f"conformance-{uuid.uuid4().hex[:10]}"
    management = Management(broker)
    body = {"default_queue_type": "quorum"}
    await asyncio.to_thread(lambda: management.request("PUT", "vhosts", name, body=body))
    try:
        await asyncio.to_thread(
            lambda: management.permit(name, broker.username, configure=".*", write=".*", read=".*")
        )
        parameters = BrokerParameters(
            host=broker.host,
            port=broker.port,
            username=broker.username,
            password=broker.password,
            virtual_host=name,
        )
        connection = await connect(parameters, name="conformance")
        try:
            yield BrokerEnv(
                name=name,
                management=management,
                parameters=parameters,
                connection=connection,
                channel=await connection.channel(),
                publisher=await Publisher.open(connection),
                inbox=Inbox(),
                heartbeats=HeartbeatLog(),
            )
        finally:
            await connection.close()
    finally:
        await asyncio.to_thread(management.request, "DELETE", "vhosts", name)
