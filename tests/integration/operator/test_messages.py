"""What goes through the broker: in which order, from whom, and what must not count."""

import json
import time
from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, Lab

pytestmark = [pytest.mark.cluster, pytest.mark.broker]


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab) -> None:
    """A window and a pool of one: what is published when is decided one by one."""
    lab.queue(
        dispatch={"maxPublished": 1},
        workers={"concurrency": 1},
        scaling={"minReplicas": 1, "maxReplicas": 1},
    )
    lab.ready()


def publish(lab: Lab, exchange: str, key: str, body: str, **properties: Any) -> bool:
    """Publish as any client may; return whether it was routed."""
    answer = lab.broker_api(
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


def dropped(lab: Lab, why: str) -> float:
    """Return how many outcomes the operator has dropped for this reason."""
    line = f'taskqueue_outcomes_dropped_total{{why="{why}"}} '
    total = 0.0
    for pod in lab.operator_pods():
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8080/proxy/metrics"
        metrics = lab.api.text(path).splitlines()
        total += sum(float(one.removeprefix(line)) for one in metrics if one.startswith(line))
    return total


def outcome(lab: Lab, task: Body, **data: Any) -> str:
    event = {
        "specversion": "1.0",
        "id": "1",
        "type": "dev.taskqueue.task.succeeded.v1",
        "source": "/workers/nobody",
        "subject": f"{lab.namespace}/{task['metadata']['name']}",
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


def test_higher_priorities_are_run_first(lab: Lab) -> None:
    lab.task("keeps-busy", "nap", payload={"seconds": 3})
    lab.phase("keeps-busy", "Running")
    priorities = {"low": -5, "middle": 0, "high": 7, "highest": 1000, "raised": -1000}
    for name, priority in priorities.items():
        lab.task(name, priority=priority)
    lab.api.patch(lab.path("tasks", "raised"), {"spec": {"priority": 5}})
    ends = {name: lab.finished(name)["completionTime"] for name in priorities}
    assert sorted(ends, key=ends.__getitem__) == ["highest", "high", "raised", "middle", "low"]


def test_equals_are_run_in_the_order_of_their_coming(lab: Lab) -> None:
    lab.task("busy-again", "nap", payload={"seconds": 1.5})
    names = [lab.task(f"equal-{letter}") for letter in "dbacfe"]
    ends = {name: lab.finished(name)["completionTime"] for name in names}
    assert sorted(names, key=ends.__getitem__) == names


def test_a_direct_message_is_run(lab: Lab) -> None:
    key = f"{lab.namespace}.q"
    for number, body in enumerate(('{"a": 1}', "no JSON at all")):
        assert publish(lab, "taskqueue.work", key, body, correlation_id=f"direct-{number}")
    lab.until(
        lambda: all(f"direct-{number}" in lab.worker_log() for number in range(2)),
        what="both run",
    )
    lab.queue_status(lambda status: status.get("backlog") == 0, what="empty")


def test_a_direct_message_brings_workers_from_zero(lab: Lab) -> None:
    lab.queue("idle", scaling={"maxReplicas": 1})
    lab.ready("idle")
    assert publish(lab, "taskqueue.work", f"{lab.namespace}.idle", "{}", correlation_id="woken")
    lab.available(1, "idle")
    lab.until(lambda: "woken" in lab.worker_log("idle"), what="run")
    lab.queue_status(lambda status: status.get("desiredReplicas") == 0, "idle", what="at zero")


def test_a_forged_outcome_changes_nothing(lab: Lab) -> None:
    before = dropped(lab, "forged")
    lab.task("target", "nap", payload={"seconds": 2})
    task = lab.api.get(lab.path("tasks", "target"))
    key = f"{lab.namespace}.q.task.succeeded"
    for token in ("guess", "1." + "0" * 32):
        assert publish(lab, "taskqueue.outcomes", key, outcome(lab, task, token=token))
    lab.until(lambda: dropped(lab, "forged") >= before + 2, what="dropped")
    status = lab.finished("target")
    assert status["phase"] == "Succeeded"
    assert "forged" not in status["result"]
    assert status["worker"] != "nobody"


def test_the_outcome_of_an_unknown_task_changes_nothing(lab: Lab) -> None:
    before = dropped(lab, "forged")
    nobody = {"metadata": {"name": "nobody", "uid": "00000000-0000-0000-0000-000000000000"}}
    key = f"{lab.namespace}.q.task.succeeded"
    assert publish(lab, "taskqueue.outcomes", key, outcome(lab, nobody, token="1.0"))
    lab.until(lambda: dropped(lab, "forged") > before, what="dropped")


@pytest.mark.parametrize(
    "garbage",
    ["", "no JSON", "[]", "{}", '{"type": "dev.taskqueue.task.succeeded.v1", "subject": 5}'],
)
def test_garbage_goes_to_the_dead_queue_with_the_reason(lab: Lab, garbage: str) -> None:
    dead = f"queues/%2F/taskqueue-dead.{lab.namespace}.q"
    assert publish(lab, "taskqueue.outcomes", f"{lab.namespace}.q.task.succeeded", garbage)
    found: list[Body] = []

    def there() -> bool:
        request = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        found.extend(lab.broker_api("POST", f"{dead}/get", request))
        return bool(found)

    lab.until(there, what="in the dead queue")
    assert found[0]["payload"] == garbage
    assert "not an event of the contract" in found[0]["properties"]["headers"]["tq-error"]
    name = lab.task(f"after-garbage-{time.monotonic_ns()}")
    assert lab.finished(name)["phase"] == "Succeeded"


def test_a_work_queue_that_is_deleted_is_made_again_with_its_tasks(lab: Lab) -> None:
    lab.queue("wiped", workers={"template": None})
    lab.ready("wiped")
    names = lab.batch("wiped", 5, queue="wiped")
    lab.queue_status(lambda status: status.get("ready") == 5, "wiped", what="published")
    lab.broker_api("DELETE", f"queues/%2F/taskqueue.{lab.namespace}.wiped")
    lab.until(lambda: recreated(lab), what="declared again")
    lab.queue_status(lambda status: status.get("ready") == 5, "wiped", what="published again")
    template = lab.queues.versions("q")[-1]["spec"]["workers"]["template"]
    lab.change_queue("wiped", workers={"template": template}, scaling={"maxReplicas": 1})
    for status in lab.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)


def recreated(lab: Lab) -> bool:
    lines = lab.operator_log(400).splitlines()
    return any('"queue.recreated"' in line and lab.namespace in line for line in lines)
