"""A harness for each test: a virtual host and a broker user with only a worker's permissions."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskqueue.amqp.connection import connect
from taskqueue.amqp.publisher import Publisher
from tests.integration.amqp.conftest import broker_endpoint, rabbitmq_vhost
from tests.integration.amqp.endpoint import VirtualHost
from tests.integration.worker.harness import Harness

__all__ = ["broker_endpoint", "rabbitmq_vhost"]


@pytest.fixture
async def empty_harness(rabbitmq_vhost: VirtualHost, tmp_path: Path) -> AsyncIterator[Harness]:
    """A virtual host without any topology. Gates are opened and workers killed in the end."""
    user, password = f"worker-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    management, vhost = rabbitmq_vhost.management, rabbitmq_vhost.name
    management.request("PUT", "users", user, body={"password": password, "tags": ""})
    management.permit(
        vhost,
        user,
        configure="^$",
        write=r"^taskqueue\.(outcomes|dead|heartbeats)$",
        read=r"^taskqueue\.(shop\.q|control)$",
    )
    keys = {"outcomes": r"^shop\.q\.", "heartbeats": r"^shop\.q\.", "dead": r"^shop\.q$"}
    for exchange, key in keys.items():
        body = {"exchange": f"taskqueue.{exchange}", "write": key, "read": "^$"}
        management.request("PUT", "topic-permissions", vhost, user, body=body)
    connection = await connect(rabbitmq_vhost.parameters, name="harness")
    harness = Harness(
        vhost=rabbitmq_vhost,
        folder=tmp_path,
        worker_parameters=dataclasses.replace(
            rabbitmq_vhost.parameters, username=user, password=password
        ),
        connection=connection,
        publisher=await Publisher.open(connection),
        channel=await connection.channel(),
    )
    yield harness
    for worker in harness.workers:
        await worker.kill()
    await connection.close()
    management.request("DELETE", "users", user)


@pytest.fixture
async def harness(empty_harness: Harness) -> Harness:
    """A virtual host with the topology, and the inbox being read."""
    await empty_harness.declare()
    await empty_harness.read_inbox()
    return empty_harness
