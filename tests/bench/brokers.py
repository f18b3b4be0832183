"""A virtual host of the benchmark's own at the cluster's RabbitMQ, with the operator's topology.

The operator does not know of it, so what a worker costs is measured and nothing else. It is deleted
at the end, with all queues in it.
"""

from __future__ import annotations

import asyncio
import base64
import urllib.error
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from pika.spec import BasicProperties

from taskqueue.amqp.channel import BrokerUnavailable, Channel
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import FIRST_COMMAND, command_message
from taskqueue.contract.names import WORK_EXCHANGE, routing_key
from taskqueue.contract.topology import declare_operator_topology, declare_task_queue
from taskqueue.kubernetes.client import ApiClient
from tests.bench import cluster as bench
from tests.bench.deadline import BenchError
from tests.integration.amqp.endpoint import Endpoint, Management

#: Where devcluster/rabbitmq/node-port.yaml lets AMQP and the management API out.
_AMQP_PORT, _MANAGEMENT_PORT = 30672, 31672
_SECRET = "/api/v1/namespaces/rabbitmq/secrets/rabbitmq"
_VIRTUAL_HOST = "taskqueue-bench"
#: Publishes under way at once.
_OUTSTANDING = 500


@dataclass(frozen=True, slots=True)
class Broker:
    """A virtual host, and a connection to it.

    Attributes:
        parameters: of the virtual host.
        channel: for looking at queues.
        publisher: for our direct messages.
    """

    parameters: BrokerParameters
    channel: Channel
    publisher: Publisher

    @property
    def uri(self) -> str:
        """The virtual host's URI, in the form every client library accepts."""
        at = self.parameters
        login = f"{quote(at.username, safe='')}:{quote(at.password, safe='')}"
        return f"amqp://{login}@{at.host}:{at.port}/{quote(at.virtual_host, safe='')}"

    async def ready(self, queue: str) -> int:
        """Return how many messages wait in the queue, without those delivered: exact, and now."""
        return await self.channel.declare_queue(queue, passive=True)

    async def publish(self, handler: str, count: int) -> None:
        """Publish direct messages for the handler, and wait until the broker has them all.

        Raises:
            BenchError: it refused one.
        """
        key = routing_key(bench.NAMESPACE, bench.QUEUE)
        room = asyncio.Semaphore(_OUTSTANDING)
        refused: list[str] = []

        def settled(verdict: Settled, text: str) -> None:
            room.release()
            if verdict is not Settled.CONFIRMED:
                refused.append(text)

        for _ in range(count):
            await room.acquire()
            properties = BasicProperties(type=handler, delivery_mode=2, message_id=uuid.uuid4().hex)
            self.publisher.publish(WORK_EXCHANGE, key, b"{}", properties, settled)
        for _ in range(_OUTSTANDING):
            await room.acquire()
        if refused:
            raise BenchError(f"RabbitMQ refused {len(refused)} messages: {refused[0]}")


@asynccontextmanager
async def bench_broker(client: ApiClient) -> AsyncIterator[Broker]:
    """Give a virtual host with everything declared that a TaskQueue's workers need.

    Raises:
        BenchError: RabbitMQ is not in the cluster, or cannot be reached from here.
    """
    endpoint = await _endpoint(client)
    management = Management(endpoint)
    ask: Callable[..., object] = management.request
    try:
        await asyncio.to_thread(_remove, management)
        # As peers know it: a queue declared without a type is a classic one.
        body = {"default_queue_type": "classic"}
        await asyncio.to_thread(ask, "PUT", "vhosts", _VIRTUAL_HOST, body=body)
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await asyncio.to_thread(
            ask, "PUT", "permissions", _VIRTUAL_HOST, endpoint.username, body=everything
        )
    except OSError as problem:
        raise BenchError(
            f"RabbitMQ's management API at {endpoint.host}:{endpoint.management_port}: {problem}"
        ) from problem
    connection: Connection | None = None
    try:
        parameters = BrokerParameters(
            host=endpoint.host,
            port=endpoint.port,
            username=endpoint.username,
            password=endpoint.password,
            virtual_host=_VIRTUAL_HOST,
        )
        connection = await connect(parameters, name="bench")
        await declare_operator_topology(connection)
        await declare_task_queue(connection, bench.NAMESPACE, bench.QUEUE)
        publisher = await Publisher.open(connection)
        first = command_message(FIRST_COMMAND)
        await publisher.publish_and_wait(first.exchange, first.key, first.body, first.properties())
        yield Broker(parameters, await connection.channel(), publisher)
    except BrokerUnavailable as problem:
        raise BenchError(str(problem)) from problem
    finally:
        if connection is not None:
            await connection.close()
        await asyncio.to_thread(_remove, management)


def _remove(management: Management) -> None:
    try:
        management.request("DELETE", "vhosts", _VIRTUAL_HOST)
    except urllib.error.HTTPError as problem:
        if problem.code != 404:
            raise


async def _endpoint(client: ApiClient) -> Endpoint:
    secret = await bench.get_or_none(client, _SECRET)
    if secret is None:
        raise BenchError("Secret rabbitmq/rabbitmq is not in this cluster: make deploy")
    nodes = (await client.get("/api/v1/nodes"))["items"]
    addresses = [
        address["address"]
        for node in nodes
        for address in node["status"]["addresses"]
        if address["type"] == "InternalIP"
    ]
    word = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    return Endpoint(
        host=addresses[0],
        port=_AMQP_PORT,
        management_port=_MANAGEMENT_PORT,
        username=word["username"],
        password=word["password"],
    )
