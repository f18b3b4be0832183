"""A virtual host for each test, and a connection to it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from taskqueue.amqp.channel import Channel
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from tests.integration.amqp.endpoint import Endpoint, Management, Rabbitmq, VirtualHost


@pytest.fixture(scope="session")
def broker_endpoint(request: pytest.FixtureRequest) -> Rabbitmq:
    """The RabbitMQ of the cluster, or the one named by TASKQUEUE_TEST_RABBITMQ."""
    uri = os.environ.get("TASKQUEUE_TEST_RABBITMQ")
    if uri:
        return Endpoint.from_uri(uri)
    found: Rabbitmq = request.getfixturevalue("rabbitmq")
    return found


@pytest.fixture
def rabbitmq_vhost(broker_endpoint: Rabbitmq) -> Iterator[VirtualHost]:
    """A virtual host of the test's own, deleted after it."""
    management = Management(broker_endpoint)
    name = f"test-{uuid.uuid4().hex[:12]}"
    management.request("PUT", "vhosts", name, body={"default_queue_type": "quorum"})
    management.permit(name, broker_endpoint.username, configure=".*", write=".*", read=".*")
    parameters = BrokerParameters(
        host=broker_endpoint.host,
        port=broker_endpoint.port,
        username=broker_endpoint.username,
        password=broker_endpoint.password,
        virtual_host=name,
    )
    yield VirtualHost(name=name, parameters=parameters, management=management)
    management.request("DELETE", "vhosts", name)


@pytest.fixture
def parameters(rabbitmq_vhost: VirtualHost) -> BrokerParameters:
    return rabbitmq_vhost.parameters


@pytest.fixture
async def connection(parameters: BrokerParameters) -> AsyncIterator[Connection]:
    connection = await connect(parameters, name="test")
    yield connection
    await connection.close()


@pytest.fixture
async def channel(connection: Connection) -> Channel:
    return await connection.channel()
