"""The watcher finds what was planted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.conftest import Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.e2e.harness import TEMPLATE, Harness
from tests.faults.broker import BrokerFaults
from tests.faults.verdict import Applied, Completed, Published, Ran, Record, Reported, Status
from tests.faults.watcher import MODULE, WATCHED, Watcher, watching

_PERMISSIONS = ("configure", "write", "read")

pytestmark = [pytest.mark.cluster, pytest.mark.broker]


@pytest.fixture(scope="module")
def harness(api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ) -> Iterator[Harness]:
    """A namespace in which a finished Task may be changed: that is what is planted."""
    harness = Harness(api, kubectl, rabbitmq)
    harness.create_core("configmaps", "watched", data={"watched.py": MODULE})
    harness.queue("idle", workers=None)
    harness.ready("idle")
    yield harness
    harness.close()


@pytest.fixture
def watcher(
    request: pytest.FixtureRequest, harness: Harness, api: Api, rabbitmq: RabbitMQ
) -> Iterator[Watcher]:
    firehose = getattr(request, "param", "bindings") == "firehose"
    with ExitStack() as stack:
        if firehose:
            stack.enter_context(BrokerFaults(rabbitmq, harness.kubectl).tracing())
        yield stack.enter_context(watching(api, rabbitmq, harness.namespace, firehose=firehose))


@pytest.fixture
def channel(rabbitmq: RabbitMQ) -> Iterator[BlockingChannel]:
    credentials = pika.PlainCredentials(rabbitmq.username, rabbitmq.password)
    parameters = pika.ConnectionParameters(rabbitmq.host, rabbitmq.port, credentials=credentials)
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    connection.close()


def _uid(harness: Harness, name: str) -> str:
    uid: str = harness.api.get(harness.path("tasks", name))["metadata"]["uid"]
    return uid


def _next_message(harness: Harness, channel: BlockingChannel) -> tuple[Any, Any, bytes]:
    """Take a message out of the idle queue, without acknowledging it."""
    taken: list[tuple[Any, Any, bytes]] = []

    def take() -> bool:
        method, properties, body = channel.basic_get(f"taskqueue.{harness.namespace}.idle")
        if method is not None:
            taken.append((method, properties, body))
        return bool(taken)

    harness.until(take, what="a message of the idle queue")
    return taken[0]


@pytest.mark.parametrize("watcher", ["bindings", "firehose"], indirect=True)
def test_tasks_that_run_as_promised_leave_a_clean_record(
    harness: Harness, watcher: Watcher, request: pytest.FixtureRequest
) -> None:
    name = f"clean-{request.node.callspec.id}"
    harness.queue(name, workers={"template": watcher.template(TEMPLATE, "watched")})
    tasks = harness.batch(name, 3, WATCHED, queue=name, payload={"seconds": 2})
    harness.all_finished(tasks)
    harness.until(lambda: _kinds(watcher, Completed) == 3, what="three announced ends")
    watcher.verdict().assert_clean()
    kinds = {kind: _kinds(watcher, kind) for kind in (Applied, Published, Ran)}
    assert kinds == {Applied: 3, Published: 3, Ran: 3}
    events = [one.event for one in watcher.records if isinstance(one, Reported)]
    assert events.count("task.succeeded") == 3
    assert set(events) == {"task.started", "task.succeeded"}
    assert _kinds(watcher, Status) >= 6


def _kinds(watcher: Watcher, kind: type[Record]) -> int:
    return sum(isinstance(one, kind) for one in watcher.records)


def test_a_planted_loss_double_publish_and_double_end_are_found(
    harness: Harness, watcher: Watcher, channel: BlockingChannel
) -> None:
    # A loss: the message is taken, and nobody runs it.
    lost = harness.task("lost", WATCHED, queue="idle")
    method, _, _ = _next_message(harness, channel)
    channel.basic_ack(method.delivery_tag)

    # A double publish: a copy of the message, under an id of its own.
    doubled = harness.task("doubled", WATCHED, queue="idle")
    method, properties, body = _next_message(harness, channel)
    properties.message_id += "-copy"
    channel.basic_publish("taskqueue.work", f"{harness.namespace}.idle", body, properties)
    channel.basic_ack(method.delivery_tag)

    # A double end: a cancelled Task ends at another time as well.
    ended = harness.task("ended", WATCHED, queue="idle", cancel=True)
    harness.finished(ended)
    change = {"status": {"completionTime": "2020-01-01T00:00:00Z"}}
    harness.api.patch(harness.path("tasks", ended, "status"), change)

    uids = {name: _uid(harness, name) for name in (lost, doubled, ended)}
    verdict = watcher.verdict()
    # The copy is left in the idle queue.
    assert verdict.findings == {
        "lost": [
            f"{name} ({uids[name]}) never ended; its last phase is Pending"
            for name in (lost, doubled)
        ],
        "double_publishes": [
            f"{doubled} ({uids[doubled]}): attempt 1, epoch 0 was published 2 times"
        ],
        "double_ends": [f"{ended} ({uids[ended]}) ended more than once: Cancelled, Cancelled"],
    }
    channel.queue_purge(f"taskqueue.{harness.namespace}.idle")


def test_what_is_published_while_the_watcher_is_disconnected_is_recorded_once(
    harness: Harness, api: Api, rabbitmq: RabbitMQ, channel: BlockingChannel
) -> None:
    user, everything = f"watcher-{harness.namespace}", dict.fromkeys(_PERMISSIONS, ".*")
    harness.broker_api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    harness.broker_api("PUT", f"permissions/%2F/{user}", everything)
    own = replace(rabbitmq, username=user, password="secret")
    with watching(api, own, harness.namespace) as watcher:
        names = harness.batch("first", 5, WATCHED, queue="idle")
        BrokerFaults(rabbitmq, harness.kubectl).close_connections(user)
        names += harness.batch("second", 5, WATCHED, queue="idle")
        harness.until(lambda: _kinds(watcher, Published) >= len(names), what="all published")
        assert list(watcher.verdict().findings) == ["lost"], "nobody runs them"
        assert _kinds(watcher, Published) == len(names)
    harness.broker_api("DELETE", f"users/{user}")
    channel.queue_purge(f"taskqueue.{harness.namespace}.idle")
