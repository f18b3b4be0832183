"""Clients that know nothing of ours: the producer and the consumer that every tutorial shows."""

from __future__ import annotations

import json
from typing import Any

import pika
import pytest

from tests.e2e.events import connect, events_of
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    # Its workers are brought by hand, once a plain consumer has had its turn.
    harness.queue("bare", workers={"template": None}, scaling=None)
    for name in ("q", "bare"):
        harness.ready(name)


def work_queue(harness: Harness, queue: str) -> str:
    return f"taskqueue.{harness.namespace}.{queue}"


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ("Hello World!", {"text": "Hello World!"}),
        (json.dumps({"page": 7}), {"page": 7}),
        (json.dumps(["a", 1]), {"text": '["a", 1]'}),
    ],
    ids=["text", "JSON object", "other JSON"],
)
def test_the_producer_of_every_tutorial(
    harness: Harness, body: str, payload: dict[str, Any]
) -> None:
    with events_of(harness, "q") as events:
        # As the tutorials have it; only `passive` is new, and the name of the queue.
        connection = connect(harness.rabbitmq)
        channel = connection.channel()
        channel.queue_declare(queue=work_queue(harness, "q"), durable=True, passive=True)
        channel.basic_publish(
            exchange="",
            routing_key=work_queue(harness, "q"),
            body=body,
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
        )
        connection.close()

        event = events.wait(lambda event: True, what="an end of the message")
        assert event["type"] == "dev.taskqueue.task.succeeded.v1"
        assert event["data"]["result"] == payload
        assert event["data"]["correlationId"] == ""
    harness.until(
        lambda: (
            harness.broker_api("GET", f"queues/%2F/{work_queue(harness, 'q')}").get("messages") == 0
        ),
        what="the message acknowledged",
    )


def test_a_consumer_that_reports_nothing_loses_no_task(harness: Harness) -> None:
    connection = connect(harness.rabbitmq)
    channel = connection.channel()
    names = [
        harness.task(f"swallowed-{number}", queue="bare", attemptTimeoutSeconds=1)
        for number in range(3)
    ]
    for _ in names:
        method, _, _ = next(
            iter(channel.consume(work_queue(harness, "bare"), inactivity_timeout=60))
        )
        assert method is not None, "the Task was not published"
        channel.basic_ack(method.delivery_tag)
    channel.cancel()

    def waiting() -> int:
        declared = channel.queue_declare(work_queue(harness, "bare"), passive=True)
        count: int = declared.method.message_count
        return count

    # All are acknowledged, so these are the second attempts.
    harness.until(lambda: waiting() == len(names), what="published again")
    connection.close()
    harness.change_queue(
        "bare", workers={"template": _template(harness)}, scaling={"minReplicas": 1}
    )
    for status in harness.all_finished(names, seconds=90):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 2)
        first = status["history"][0]
        assert (first["outcome"], first["reason"]) == ("Failed", "Timeout")
        assert "acknowledges without reporting" in first["message"]


def _template(harness: Harness) -> Any:
    template: Any = harness.api.get(harness.path("taskqueues", "q"))["spec"]["workers"]["template"]
    return template
