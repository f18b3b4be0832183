"""What goes through the broker: in which order, from whom, and what must not count."""

import json
import time
from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, Harness

pytestmark = [pytest.mark.cluster, pytest.mark.broker]


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    """A window and a pool of one: what is published when is decided one by one."""
    harness.queue(
        dispatch={"maxPublished": 1},
        workers={"concurrency": 1},
        scaling={"minReplicas": 1, "maxReplicas": 1},
    )
    harness.ready()


def publish(harness: Harness, exchange: str, key: str, body: str, **properties: Any) -> bool:
    """Publish as any client may; return whether it was routed."""
    answer = harness.broker_api(
        "POST",
        f"exchanges/%2F/{exchange}/publish",
        {
            "properties": {"delivery_mode": 2, **properties},
            "routing_key": key,
            "payload": body,
            "payload_encoding": "string",
        },
    )
    return bool(answer["routed"])


def dropped(harness: Harness, why: str) -> float:
    """Return how many outcomes the operator has dropped for this reason."""
    line = f'taskqueue_outcomes_dropped_total{{why="{why}"}} '
    total = 0.0
    for pod in harness.operator_pods():
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8080/proxy/metrics"
        metrics = harness.api.text(path).splitlines()
        total += sum(float(one.removeprefix(line)) for one in metrics if one.startswith(line))
    return total


def outcome(harness: Harness, task: Body, **data: Any) -> str:
    event = {
        "specversion": "1.0",
        "id": "1",
        "type": "dev.taskqueue.task.succeeded.v1",
        "source": "/workers/nobody",
        "subject": f"{harness.namespace}/{task['metadata']['name']}",
        "data": {
            "uid": task["metadata"]["uid"],
            "attempt": 1,
            "epoch": 0,
            "worker": "nobody",
            "seconds": 1,
            "result": {"forged": True},
            **data,
        },
    }
    return json.dumps(event)


def test_higher_priorities_are_run_first(harness: Harness) -> None:
    harness.task("keeps-busy", "nap", payload={"seconds": 3})
    harness.phase("keeps-busy", "Running")
    priorities = {"low": -5, "middle": 0, "high": 7, "highest": 1000, "raised": -1000}
    for name, priority in priorities.items():
        harness.task(name, priority=priority)
    harness.api.patch(harness.path("tasks", "raised"), {"spec": {"priority": 5}})
    ends = {name: harness.finished(name)["completionTime"] for name in priorities}
    assert sorted(ends, key=ends.__getitem__) == ["highest", "high", "raised", "middle", "low"]


def test_equals_are_run_in_the_order_of_their_coming(harness: Harness) -> None:
    harness.task("busy-again", "nap", payload={"seconds": 1.5})
    names = [harness.task(f"equal-{letter}") for letter in "dbacfe"]
    ends = {name: harness.finished(name)["completionTime"] for name in names}
    assert sorted(names, key=ends.__getitem__) == names


def test_a_direct_message_is_run(harness: Harness) -> None:
    key = f"{harness.namespace}.q"
    for number, body in enumerate(('{"a": 1}', "no JSON at all")):
        assert publish(harness, "taskqueue.direct", key, body, correlation_id=f"direct-{number}")
    harness.until(
        lambda: all(f"direct-{number}" in harness.worker_log() for number in range(2)),
        what="both run",
    )
    harness.queue_status(lambda status: status.get("backlog") == 0, what="empty")


def test_a_direct_message_by_the_work_exchange_is_run_and_its_producer_called_outdated(
    harness: Harness,
) -> None:
    def outdated(status: dict[str, Any]) -> dict[str, Any]:
        listed = status.get("conditions") or ()
        return next((one for one in listed if one["type"] == "ProducersOutdated"), {})

    harness.queue_status(lambda status: outdated(status).get("status") == "False", what="none")
    key = f"{harness.namespace}.q"
    assert publish(harness, "taskqueue.work", key, "{}", correlation_id="old-producer")
    harness.until(lambda: "old-producer" in harness.worker_log(), what="run")
    harness.queue_status(
        lambda status: key in outdated(status).get("message", ""),
        what="the condition names the key",
    )


def test_a_direct_message_brings_workers_from_zero(harness: Harness) -> None:
    harness.queue("idle", scaling={"maxReplicas": 1})
    harness.ready("idle")
    assert publish(
        harness, "taskqueue.direct", f"{harness.namespace}.idle", "{}", correlation_id="woken"
    )
    harness.available(1, "idle")
    harness.until(lambda: "woken" in harness.worker_log("idle"), what="run")
    harness.queue_status(lambda status: status.get("desiredReplicas") == 0, "idle", what="at zero")


def test_a_forged_outcome_changes_nothing(harness: Harness) -> None:
    before = dropped(harness, "forged")
    harness.task("target", "nap", payload={"seconds": 2})
    task = harness.api.get(harness.path("tasks", "target"))
    key = f"{harness.namespace}.q.task.succeeded"
    for token in ("guess", "1." + "0" * 32):
        assert publish(harness, "taskqueue.outcomes", key, outcome(harness, task, token=token))
    harness.until(lambda: dropped(harness, "forged") >= before + 2, what="dropped")
    status = harness.finished("target")
    assert status["phase"] == "Succeeded"
    assert "forged" not in status["result"]
    assert status["worker"] != "nobody"


def test_the_outcome_of_an_unknown_task_changes_nothing(harness: Harness) -> None:
    before = dropped(harness, "forged")
    nobody = {"metadata": {"name": "nobody", "uid": "00000000-0000-0000-0000-000000000000"}}
    key = f"{harness.namespace}.q.task.succeeded"
    assert publish(harness, "taskqueue.outcomes", key, outcome(harness, nobody, token="1.0"))
    harness.until(lambda: dropped(harness, "forged") > before, what="dropped")


@pytest.mark.parametrize(
    "garbage",
    ["", "no JSON", "[]", "{}", '{"type": "dev.taskqueue.task.succeeded.v1", "subject": 5}'],
)
def test_garbage_goes_to_the_dead_queue_with_the_reason(harness: Harness, garbage: str) -> None:
    dead = f"queues/%2F/taskqueue-dead.{harness.namespace}.q"
    assert publish(harness, "taskqueue.outcomes", f"{harness.namespace}.q.task.succeeded", garbage)
    found: list[Body] = []

    def there() -> bool:
        request = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        found.extend(harness.broker_api("POST", f"{dead}/get", request))
        return bool(found)

    harness.until(there, what="in the dead queue")
    assert found[0]["payload"] == garbage
    assert "of the contract" in found[0]["properties"]["headers"]["tq-error"]
    name = harness.task(f"after-garbage-{time.monotonic_ns()}")
    assert harness.finished(name)["phase"] == "Succeeded"


def test_a_work_queue_that_is_deleted_is_made_again_with_its_tasks(harness: Harness) -> None:
    harness.queue("wiped", workers={"template": None})
    harness.ready("wiped")
    names = harness.batch("wiped", 5, queue="wiped")
    harness.queue_status(lambda status: status.get("ready") == 5, "wiped", what="published")
    harness.broker_api("DELETE", f"queues/%2F/taskqueue.{harness.namespace}.wiped")
    harness.until(lambda: recreated(harness), what="declared again")
    harness.queue_status(lambda status: status.get("ready") == 5, "wiped", what="published again")
    template = harness.queues.versions("q")[-1]["spec"]["workers"]["template"]
    harness.change_queue("wiped", workers={"template": template}, scaling={"maxReplicas": 1})
    for status in harness.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)


def recreated(harness: Harness) -> bool:
    lines = harness.operator_log(-1, since="60s").splitlines()
    return any('"queue.recreated"' in line and harness.namespace in line for line in lines)


LIMITS = {"TASKQUEUE_MAX_DELIVERIES": "1", "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": "50"}


def files(harness: Harness) -> list[str]:
    """Return what a running worker of TaskQueue ``edited`` reads of these limits."""
    paths = [f"/etc/taskqueue/limits/{name}" for name in LIMITS]
    show = ("sh", "-c", 'for file; do cat "$file"; echo; done', "-", *paths)
    exec_in = ("exec", "-n", harness.namespace, "deployment/edited-worker", "--")
    return harness.kubectl.ok(*exec_in, *show).splitlines()


def test_an_edit_of_the_policy_reaches_running_workers_and_replaces_none(harness: Harness) -> None:
    harness.queue("edited", scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1, "edited")
    before = harness.api.get(harness.deployment("edited"))["spec"]["template"]
    limits = {"maxDeliveries": 1, "attemptTimeoutSeconds": 50}
    harness.api.patch(harness.path("taskqueues", "edited"), {"spec": {"taskDefaults": limits}})
    written = harness.core("configmaps", "edited-worker")
    harness.until(lambda: harness.api.get(written)["data"] == LIMITS, what="in the ConfigMap")
    harness.renew_files("edited")
    harness.until(
        lambda: files(harness) == [*LIMITS.values()],
        what="in the files of the running worker",
        seconds=180,
    )
    key = f"{harness.namespace}.edited"
    body = '{"failures": 9}'
    assert publish(harness, "taskqueue.direct", key, body, type="flaky", correlation_id="limited")
    harness.queue_status(lambda status: status.get("deadLetters") == 1, "edited", what="given up")
    failures = [
        line
        for line in harness.log_lines("edited")
        if line["event"] == "task.failed" and line.get("uid") == "limited"
    ]
    assert len(failures) == 1, "after its only delivery"
    assert harness.api.get(harness.deployment("edited"))["spec"]["template"] == before
