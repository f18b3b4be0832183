"""How a command connects to a TaskQueue's broker: by the TaskQueue's Secret or by an address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kubernetes.aio.config import ConfigException

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.cli.errors import CommandFailed
from taskqueue.kubernetes.broker_secret import read_broker_secret
from taskqueue.kubernetes.client import ApiClient, ApiError, load_access
from taskqueue.kubernetes.secret_values import SecretUnusable
from taskqueue.kubernetes.taskqueue_codec import queue_path, read_queue
from taskqueue.model.queue import QueueConfig, QueueKey

#: People wait longer than the operator does: a broker under load may be slow to accept.
_CONNECT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class QueueTarget:
    """The TaskQueue a command works on, and how to reach its broker.

    Attributes:
        key: namespace and name of the TaskQueue.
        broker_uri: address of its broker; None: read from its Secret through the API server.
        kubeconfig: path of the file to use; None: a pod's service account, or the usual places.
    """

    key: QueueKey
    broker_uri: str | None = None
    kubeconfig: str | None = None

    @property
    def name(self) -> str:
        """``namespace/name`` of the TaskQueue."""
        return "/".join(self.key)


@asynccontextmanager
async def connect_to_broker(target: QueueTarget) -> AsyncIterator[Connection]:
    """Yield a connection to the broker of a TaskQueue.

    Raises:
        CommandFailed: the TaskQueue or its Secret cannot be read, or the broker cannot be reached.
    """
    parameters = await _parameters(target)
    try:
        connection = await connect(
            parameters, name="taskqueue: dead-letters", timeout_seconds=_CONNECT_SECONDS
        )
    except (BrokerConfigurationError, BrokerUnavailable) as error:
        hint = (
            ""
            if target.broker_uri
            else "; outside the cluster give --broker-uri, or run the command in the operator's pod"
        )
        raise CommandFailed(f"{error}{hint}") from error
    try:
        yield connection
    finally:
        await connection.close()


async def _parameters(target: QueueTarget) -> BrokerParameters:
    if target.broker_uri:
        try:
            return BrokerParameters.from_mapping({"uri": target.broker_uri})
        except BrokerConfigurationError as error:
            raise CommandFailed(f"--broker-uri: {error}") from error
    try:
        access = await load_access(target.kubeconfig)
    except (ConfigException, OSError) as error:
        raise CommandFailed(
            f"cannot find the API server: give --kubeconfig or --broker-uri ({error})"
        ) from error
    client = ApiClient(access)
    try:
        secret = await read_broker_secret(client, await _queue(client, target))
        return BrokerParameters.from_mapping(secret.data)
    except (SecretUnusable, ApiError) as error:
        raise CommandFailed(f"TaskQueue {target.name}: {error}") from error
    except BrokerConfigurationError as error:
        raise CommandFailed(f"TaskQueue {target.name}: {secret.where}: {error}") from error
    finally:
        await client.close()


async def _queue(client: ApiClient, target: QueueTarget) -> QueueConfig:
    try:
        return read_queue(await client.get(queue_path(target.key)))
    except ApiError as error:
        if error.status != 404:
            raise
        raise CommandFailed(
            f"TaskQueue {target.name} does not exist: check its namespace and name, or give "
            "--broker-uri if it was deleted and its queues are still at the broker"
        ) from error
    except ValueError as error:
        raise CommandFailed(f"TaskQueue {target.name} cannot be read: {error}") from error
