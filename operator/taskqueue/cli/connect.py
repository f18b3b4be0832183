"""How a command reaches the broker of a TaskQueue: through the API server, or by an address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kubernetes.aio.config import ConfigException

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.kubernetes.broker_secret import NoBrokerSecret, read_broker_secret
from taskqueue.kubernetes.client import ApiClient, ApiError, load_access
from taskqueue.kubernetes.taskqueue_codec import queue_path, read_queue
from taskqueue.model.queue import QueueConfig, QueueKey

#: A command of people: a broker under load may be slower than an operator waits for.
_CONNECT_SECONDS = 15.0


class CommandFailed(Exception):
    """The command cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class QueueTarget:
    """Where a command is to look.

    Attributes:
        key: the TaskQueue.
        broker_uri: address of its broker; None: its Secret is read through the API server.
        kubeconfig: path, outside a cluster; None: looked for.
    """

    key: QueueKey
    broker_uri: str | None = None
    kubeconfig: str | None = None

    @property
    def name(self) -> str:
        """``namespace/name`` of the TaskQueue."""
        return "/".join(self.key)


@asynccontextmanager
async def connected(place: QueueTarget) -> AsyncIterator[Connection]:
    """Yield a connection to the broker of a TaskQueue.

    Raises:
        CommandFailed: it cannot be found or reached.
    """
    parameters = await _parameters(place)
    try:
        connection = await connect(
            parameters, name="taskqueue: dead-letters", timeout_seconds=_CONNECT_SECONDS
        )
    except (BrokerConfigurationError, BrokerUnavailable) as problem:
        hint = (
            ""
            if place.broker_uri
            else "; outside the cluster give --broker-uri, or run the command in the operator's pod"
        )
        raise CommandFailed(f"{problem}{hint}") from problem
    try:
        yield connection
    finally:
        await connection.close()


async def _parameters(place: QueueTarget) -> BrokerParameters:
    if place.broker_uri:
        try:
            return BrokerParameters.from_mapping({"uri": place.broker_uri})
        except BrokerConfigurationError as problem:
            raise CommandFailed(f"--broker-uri: {problem}") from problem
    try:
        access = await load_access(place.kubeconfig)
    except (ConfigException, OSError) as problem:
        raise CommandFailed(
            f"no way to the API server is known: give --kubeconfig, or --broker-uri: {problem}"
        ) from problem
    client = ApiClient(access)
    try:
        secret = await read_broker_secret(client, await _queue(client, place))
        return BrokerParameters.from_mapping(secret.data)
    except (NoBrokerSecret, ApiError) as problem:
        raise CommandFailed(f"TaskQueue {place.name}: {problem}") from problem
    except BrokerConfigurationError as problem:
        raise CommandFailed(f"TaskQueue {place.name}: {secret.where}: {problem}") from problem
    finally:
        await client.close()


async def _queue(client: ApiClient, place: QueueTarget) -> QueueConfig:
    try:
        return read_queue(await client.get(queue_path(place.key)))
    except ApiError as problem:
        if problem.status != 404:
            raise
        raise CommandFailed(
            f"there is no TaskQueue {place.name}: check the name; queues it has left at its broker "
            "can be reached with --broker-uri"
        ) from problem
    except ValueError as problem:
        raise CommandFailed(f"TaskQueue {place.name} cannot be read: {problem}") from problem
