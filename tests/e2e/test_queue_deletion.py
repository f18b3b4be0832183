"""What becomes of the broker's queues when a TaskQueue is deleted."""

import pytest
import requests

from tests.e2e.api import Refused
from tests.e2e.harness import Harness

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

FINALIZER = "taskqueue.dev/broker-queues"
NO_WORKERS = {"template": None}


def finalizers(harness: Harness, name: str) -> list[str]:
    metadata = harness.api.get(harness.path("taskqueues", name))["metadata"]
    found: list[str] = metadata.get("finalizers", [])
    return found


def held(harness: Harness, name: str) -> None:
    """Return when the TaskQueue cannot go without its queues."""
    harness.until(lambda: finalizers(harness, name) == [FINALIZER], what="held by our finalizer")


def at_broker(harness: Harness, name: str, *, namespace: str | None = None) -> dict[str, bool]:
    """Tell which queues of a TaskQueue the broker has."""

    def there(queue: str) -> bool:
        try:
            harness.broker_api("GET", f"queues/%2F/{queue}")
        except requests.HTTPError as problem:
            if problem.response.status_code != 404:
                raise
            return False
        return True

    place = f"{namespace or harness.namespace}.{name}"
    return {"work": there(f"taskqueue.{place}"), "dead": there(f"taskqueue-dead.{place}")}


GONE = {"work": False, "dead": False}
THERE = {"work": True, "dead": True}


def filled(harness: Harness, name: str, **spec: object) -> list[str]:
    """Create a TaskQueue without workers, with Tasks at the broker and a dead letter."""
    harness.queue(name, workers=NO_WORKERS, **spec)
    harness.ready(name)
    names = harness.batch(f"of-{name}", 3, queue=name)
    message = {"properties": {}, "payload": "{}", "payload_encoding": "string"}
    routed = harness.broker_api(
        "POST",
        "exchanges/%2F/taskqueue.dead/publish",
        {**message, "routing_key": f"{harness.namespace}.{name}"},
    )["routed"]
    assert routed
    harness.queue_status(
        lambda status: status.get("ready") == 3 and status.get("deadLetters") == 1,
        name,
        what="filled",
    )
    return names


def test_by_default_the_queues_stay_and_nothing_holds_the_object(harness: Harness) -> None:
    filled(harness, "kept")
    assert finalizers(harness, "kept") == []
    harness.delete_queue("kept")
    assert at_broker(harness, "kept") == THERE


def test_with_delete_both_queues_go_with_what_is_in_them(harness: Harness) -> None:
    names = filled(harness, "thrown", deletionPolicy="Delete")
    held(harness, "thrown")
    harness.delete_queue("thrown")
    assert at_broker(harness, "thrown") == GONE
    for name in names:
        status = harness.phase(name, "Blocked")
        assert status["reason"] == "QueueNotFound"
    # Nobody has declared them again, and the Tasks are none the worse.
    assert at_broker(harness, "thrown") == GONE
    harness.queue("thrown", scaling={"maxReplicas": 1})
    for status in harness.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)


def test_the_policy_can_be_changed_both_ways(harness: Harness) -> None:
    harness.queue("wavering", workers=NO_WORKERS)
    harness.ready("wavering")
    harness.change_queue("wavering", deletionPolicy="Delete")
    held(harness, "wavering")
    harness.change_queue("wavering", deletionPolicy="Retain")
    harness.until(lambda: finalizers(harness, "wavering") == [], what="let go")
    harness.delete_queue("wavering")
    assert at_broker(harness, "wavering") == THERE


def test_a_secret_that_goes_first_is_not_needed(harness: Harness) -> None:
    harness.secret("short-lived")
    harness.queue(
        "orphan",
        workers=NO_WORKERS,
        deletionPolicy="Delete",
        broker={"connectionSecret": {"name": "short-lived"}},
    )
    harness.ready("orphan")
    held(harness, "orphan")
    harness.api.request("DELETE", harness.core("secrets", "short-lived"))
    harness.delete_queue("orphan")
    assert at_broker(harness, "orphan") == GONE


def test_a_namespace_that_ends_is_not_held(harness: Harness) -> None:
    other = Harness(harness.api, harness.kubectl, harness.rabbitmq)
    path = f"/api/v1/namespaces/{other.namespace}"
    other.queue("q", workers=NO_WORKERS, deletionPolicy="Delete")
    other.ready("q")
    held(other, "q")
    assert at_broker(harness, "q", namespace=other.namespace) == THERE
    harness.api.request("DELETE", path)
    other.tasks.close()
    other.queues.close()

    def gone() -> bool:
        try:
            harness.api.get(path)
        except Refused as answer:
            return answer.status == 404
        return False

    harness.until(gone, what="gone", seconds=120)
    assert at_broker(harness, "q", namespace=other.namespace) == GONE
