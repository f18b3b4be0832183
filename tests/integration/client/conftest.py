"""A namespace of Tasks at the real API server, and a virtual host at the real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from taskqueue.client import AsyncTaskClient
from taskqueue.client.access import ApiConnection, open_connection
from taskqueue.kubernetes.client import load_access
from tests.conftest import Cluster
from tests.integration.amqp.conftest import (
    broker_endpoint,
    connection,
    parameters,
    rabbitmq_vhost,
)

__all__ = ["broker_endpoint", "connection", "parameters", "rabbitmq_vhost"]


@pytest.fixture
async def connected(cluster: Cluster, namespace: str) -> ApiConnection:
    """A connection to the API server with the test's namespace."""
    return open_connection(await load_access(str(cluster.kubeconfig)), namespace)


@pytest.fixture
async def client(connected: ApiConnection) -> AsyncIterator[AsyncTaskClient]:
    async def connect() -> ApiConnection:
        return connected

    async with AsyncTaskClient(connect=connect) as client:
        yield client
