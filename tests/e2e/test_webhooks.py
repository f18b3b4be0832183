"""A TaskQueue with webhooks: a receiver on this machine that is there, away, and not allowed."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import RabbitMQ
from tests.e2e.harness import Harness, conditions
from tests.integration.webhooks.receiver import WebhookReceiver

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture(scope="module")
def receiver(rabbitmq: RabbitMQ) -> Iterator[WebhookReceiver]:
    """A receiver at the address of this machine that pods reach."""
    with socket.create_connection((rabbitmq.host, rabbitmq.port), timeout=30) as connection:
        receiver = WebhookReceiver(SECRET, connection.getsockname()[0])
    yield receiver
    receiver.stop()


def test_ends_reach_the_receiver_that_the_tasks_choose_and_conditions_say_what_does_not(
    harness: Harness, receiver: WebhookReceiver
) -> None:
    harness.create_core("secrets", "signing", stringData={"secret": SECRET})
    signing = {"signingSecretKeyRef": {"name": "signing", "key": "secret"}}
    harness.queue(notifications=[{"name": "hook", "url": receiver.url, **signing}])
    harness.condition("WebhooksDelivered", "True", "Delivered")

    def subjects() -> set[str]:
        return {event["subject"].partition("/")[2] for event in list(receiver.events.values())}

    harness.task("done", ttlSecondsAfterFinished=0)
    harness.task("failed", "give_up", retry={"maxAttempts": 1})
    harness.task("cancelled", cancel=True, suspend=True)
    harness.task("quiet", notificationNames=[])
    harness.task("chosen", notificationNames=["hook", "other"])
    harness.task("deleted", suspend=True)
    harness.phase("deleted", "Suspended")
    harness.delete_task("deleted")
    expected = {"done", "failed", "cancelled", "chosen", "deleted"}
    harness.until(lambda: subjects() == expected, what="five ends at the receiver")

    receiver.stop()
    names = harness.batch("away", 20)
    harness.all_finished(names)  # which waits for no receiver
    harness.condition("WebhooksDelivered", "False", "ReceiverUnreachable")
    receiver.start()
    harness.until(lambda: subjects() == expected | set(names), what="all ends at the receiver")
    harness.queue_status(
        lambda status: conditions(status)["WebhooksDelivered"]["status"] == "True",
        what="WebhooksDelivered",
    )
    assert receiver.forged == 0
    assert all(len(bodies) == 1 for bodies in receiver.bodies.values())
    by_subject = {event["subject"] for event in receiver.events.values()}
    assert len(by_subject) == len(receiver.events)  # one id for each Task

    url = "http://169.254.169.254/latest/meta-data"
    harness.change_queue("q", notifications=[{"name": "hook", "url": url, **signing}])
    # Or else the receiver of before could get its end.
    harness.queue_status(lambda _: True, what="a status for the new address")
    harness.task("inside")
    harness.condition("WebhooksDelivered", "False", "AddressNotAllowed")
    harness.finished("inside")
