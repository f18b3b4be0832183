"""What becomes of the broker's queues when a TaskQueue is deleted."""

import pytest
import requests

from tests.e2e.api import Refused
from tests.e2e.harness import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

FINALIZER = "taskqueue.dev/broker-queues"
NO_WORKERS = {"template": None}


def finalizers(lab: Lab, name: str) -> list[str]:
    metadata = lab.api.get(lab.path("taskqueues", name))["metadata"]
    found: list[str] = metadata.get("finalizers", [])
    return found


def held(lab: Lab, name: str) -> None:
    """Return when the TaskQueue cannot go without its queues."""
    lab.until(lambda: finalizers(lab, name) == [FINALIZER], what="held by our finalizer")


def at_broker(lab: Lab, name: str, *, namespace: str | None = None) -> dict[str, bool]:
    """Tell which queues of a TaskQueue the broker has."""

    def there(queue: str) -> bool:
        try:
            lab.broker_api("GET", f"queues/%2F/{queue}")
        except requests.HTTPError as problem:
            if problem.response.status_code != 404:
                raise
            return False
        return True

    place = f"{namespace or lab.namespace}.{name}"
    return {"work": there(f"taskqueue.{place}"), "dead": there(f"taskqueue-dead.{place}")}


GONE = {"work": False, "dead": False}
THERE = {"work": True, "dead": True}


def filled(lab: Lab, name: str, **spec: object) -> list[str]:
    """Create a TaskQueue without workers, with Tasks at the broker and a dead letter."""
    lab.queue(name, workers=NO_WORKERS, **spec)
    lab.ready(name)
    names = lab.batch(f"of-{name}", 3, queue=name)
    message = {"properties": {}, "payload": "{}", "payload_encoding": "string"}
    routed = lab.broker_api(
        "POST",
        "exchanges/%2F/taskqueue.dead/publish",
        {**message, "routing_key": f"{lab.namespace}.{name}"},
    )["routed"]
    assert routed
    lab.queue_status(
        lambda status: status.get("ready") == 3 and status.get("deadLetters") == 1,
        name,
        what="filled",
    )
    return names


def test_by_default_the_queues_stay_and_nothing_holds_the_object(lab: Lab) -> None:
    filled(lab, "kept")
    assert finalizers(lab, "kept") == []
    lab.delete_queue("kept")
    assert at_broker(lab, "kept") == THERE


def test_with_delete_both_queues_go_with_what_is_in_them(lab: Lab) -> None:
    names = filled(lab, "thrown", deletionPolicy="Delete")
    held(lab, "thrown")
    lab.delete_queue("thrown")
    assert at_broker(lab, "thrown") == GONE
    for name in names:
        status = lab.phase(name, "Blocked")
        assert status["reason"] == "QueueNotFound"
    # Nobody has declared them again, and the Tasks are none the worse.
    assert at_broker(lab, "thrown") == GONE
    lab.queue("thrown", scaling={"maxReplicas": 1})
    for status in lab.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)


def test_the_policy_can_be_changed_both_ways(lab: Lab) -> None:
    lab.queue("wavering", workers=NO_WORKERS)
    lab.ready("wavering")
    lab.change_queue("wavering", deletionPolicy="Delete")
    held(lab, "wavering")
    lab.change_queue("wavering", deletionPolicy="Retain")
    lab.until(lambda: finalizers(lab, "wavering") == [], what="let go")
    lab.delete_queue("wavering")
    assert at_broker(lab, "wavering") == THERE


def test_a_secret_that_goes_first_is_not_needed(lab: Lab) -> None:
    lab.secret("short-lived")
    lab.queue(
        "orphan",
        workers=NO_WORKERS,
        deletionPolicy="Delete",
        broker={"connectionSecret": {"name": "short-lived"}},
    )
    lab.ready("orphan")
    held(lab, "orphan")
    lab.api.request("DELETE", lab.core("secrets", "short-lived"))
    lab.delete_queue("orphan")
    assert at_broker(lab, "orphan") == GONE


def test_a_namespace_that_ends_is_not_held(lab: Lab) -> None:
    other = Lab(lab.api, lab.kubectl, lab.rabbitmq)
    path = f"/api/v1/namespaces/{other.namespace}"
    other.queue("q", workers=NO_WORKERS, deletionPolicy="Delete")
    other.ready("q")
    held(other, "q")
    assert at_broker(lab, "q", namespace=other.namespace) == THERE
    lab.api.request("DELETE", path)
    other.tasks.close()
    other.queues.close()

    def gone() -> bool:
        try:
            lab.api.get(path)
        except Refused as answer:
            return answer.status == 404
        return False

    lab.until(gone, what="gone", seconds=120)
    assert at_broker(lab, "q", namespace=other.namespace) == GONE
