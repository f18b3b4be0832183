"""How Tasks end, and what their status says then."""

import json
from datetime import datetime

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import Harness, conditions, true_conditions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1})


def outline(status: Body) -> list[tuple[int, str, str]]:
    return [(one["attempt"], one["outcome"], one.get("reason", "")) for one in status["history"]]


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_success(harness: Harness) -> None:
    payload = {"deep": [1, {"none": None}], "text": "ä€𝄞"}
    harness.task("success", payload=payload)
    status = harness.finished("success")
    assert status["phase"] == "Succeeded"
    assert status["result"] == payload
    assert status["attempts"] == 1
    assert outline(status) == [(1, "Succeeded", "")]
    assert not {"reason", "message"} & status.keys()
    assert true_conditions(status) == {"Finished", "Complete"}
    assert status["worker"] == status["history"][0]["worker"]
    assert status["worker"].startswith("q-worker-")
    assert status["observedGeneration"] == 1
    assert seconds_between(status["startTime"], status["completionTime"]) >= 0


def test_two_failures_and_a_success(harness: Harness) -> None:
    harness.task("flaky", "flaky", payload={"failures": 2})
    status = harness.finished("flaky")
    assert status["phase"] == "Succeeded"
    assert status["attempts"] == 3
    assert status["result"] == {"attempt": 3}
    assert outline(status) == [
        (1, "Failed", "ConnectionError"),
        (2, "Failed", "ConnectionError"),
        (3, "Succeeded", ""),
    ]
    assert status["history"][1]["message"] == "the network is away at attempt 2"
    assert true_conditions(status) == {"Finished", "Complete"}


def test_retries_exhausted(harness: Harness) -> None:
    harness.task("exhausted", "flaky", payload={"failures": 9}, retry={"maxAttempts": 2})
    status = harness.finished("exhausted")
    message = "attempt 2 of 2: ConnectionError: the network is away at attempt 2"
    assert (status["phase"], status["reason"]) == ("Failed", "RetriesExhausted")
    assert status["message"] == message
    assert outline(status) == [(1, "Failed", "ConnectionError"), (2, "Failed", "ConnectionError")]
    assert true_conditions(status) == {"Finished", "Failed", "Stalled"}
    assert conditions(status)["Failed"]["reason"] == "RetriesExhausted"
    assert conditions(status)["Stalled"]["message"] == message


@pytest.mark.parametrize(
    ("handler", "retry", "error"),
    [
        ("give_up", {}, "NotFound: there is no such page"),
        ("flaky", {"nonRetryable": ["ConnectionError"]}, "ConnectionError: the network is away"),
    ],
    ids=["handler says Fail", "listed in nonRetryable"],
)
def test_not_retryable(harness: Harness, handler: str, retry: Body, error: str) -> None:
    name = f"final-{handler.replace('_', '-')}"
    harness.task(name, handler, payload={"failures": 9}, retry={"maxAttempts": 5, **retry})
    status = harness.finished(name)
    assert (status["phase"], status["reason"]) == ("Failed", "NonRetryable")
    assert status["message"].startswith(f"attempt 1 of 5: {error}")
    assert status["attempts"] == 1
    assert true_conditions(status) == {"Finished", "Failed", "Stalled"}


def test_a_handler_names_the_time_of_its_retry(harness: Harness) -> None:
    backoff = {"initialSeconds": 300}
    payload = {"after": 2.6}
    harness.task("limited", "rate_limited", payload=payload, retry={"backoff": backoff})
    waiting = harness.phase("limited", "Retrying")
    assert waiting["reason"] == "Retry"
    assert waiting["message"] == "attempt 1 of 3: Retry: the rate limit is reached"
    assert true_conditions(waiting) == {"Reconciling"}
    asked = seconds_between(waiting["history"][0]["finishTime"], waiting["nextAttemptTime"])
    assert asked == pytest.approx(2.6, abs=0.01)
    status = harness.finished("limited")
    assert (status["phase"], status["attempts"]) == ("Succeeded", 2)
    assert "nextAttemptTime" not in status


def test_an_attempt_that_lasts_is_seen_running(harness: Harness) -> None:
    harness.task("long", "nap", payload={"seconds": 3})
    running = harness.phase("long", "Running")
    assert true_conditions(running) == {"Reconciling"}
    assert running["attempts"] == 1
    assert running["worker"].startswith("q-worker-")
    status = harness.finished("long")
    assert status["startTime"] <= running["startTime"]
    assert status["history"][0]["worker"] == running["worker"]


def test_an_attempt_that_outlives_its_time(harness: Harness) -> None:
    harness.task(
        "slow", "nap", payload={"seconds": 5}, attemptTimeoutSeconds=1, retry={"maxAttempts": 1}
    )
    status = harness.finished("slow")
    assert (status["phase"], status["reason"]) == ("Failed", "RetriesExhausted")
    assert outline(status) == [(1, "Failed", "Timeout")]


def test_kubectl_waits_and_reads_well(harness: Harness) -> None:
    names = [harness.task("told", "nap", payload={"seconds": 1}), harness.task("bad", "give_up")]
    wait = ("wait", "-n", harness.namespace, "--timeout=60s")
    harness.kubectl.ok(*wait, "--for=condition=Complete", "task.taskqueue.dev/told")
    harness.kubectl.ok(*wait, "--for=condition=Failed", "task.taskqueue.dev/bad")
    for name in names:
        harness.finished(name, seconds=0)  # kubectl did wait

    rows = harness.kubectl.ok("get", "tq,tqt", "-n", harness.namespace).splitlines()
    table = {line.split()[0].partition("/")[2]: line.split() for line in rows if "/" in line}
    assert table["q"][1] == "True"
    assert table["told"][1:5] == ["q", "nap", "Succeeded", "1"]
    assert table["bad"][1:6] == ["q", "give_up", "Failed", "1", "NonRetryable"]


def test_a_finished_task_applied_again_does_nothing(harness: Harness) -> None:
    manifest = json.dumps(
        {
            "apiVersion": "taskqueue.dev/v1alpha1",
            "kind": "Task",
            "metadata": {"name": "again"},
            "spec": {"queue": "q", "handler": "echo", "payload": {"a": 1}},
        }
    )
    apply = ("apply", "-n", harness.namespace, "-f", "-")
    harness.kubectl.ok(*apply, input=manifest)
    harness.finished("again")
    before = harness.tasks.versions("again")[-1]
    assert "unchanged" in harness.kubectl.ok(*apply, input=manifest)
    harness.task("after")  # whatever the operator had to do about it, it has done before this one
    harness.finished("after")
    now = harness.api.get(harness.path("tasks", "again"))
    assert now["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_totals_count_each_end_once(harness: Harness) -> None:
    tasks = [harness.tasks.versions(name)[-1] for name in harness.tasks.names()]
    ends = [task["status"]["phase"] for task in tasks]
    expected = {
        "succeeded": ends.count("Succeeded"),
        "failed": ends.count("Failed"),
        "cancelled": 0,
    }
    harness.queue_status(lambda status: status.get("totals") == expected, what=f"totals {expected}")
