"""Given-up messages: counted in the TaskQueue's status, and handled by the command in the pod."""

import json
import shlex
from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, Lab, conditions, true_conditions

pytestmark = [pytest.mark.cluster, pytest.mark.broker]


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab) -> None:
    lab.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    lab.ready()
    lab.available(1)


def publish(lab: Lab, exchange: str, body: str, **properties: Any) -> None:
    """Publish as any client, or worker, may."""
    answer = lab.broker_api(
        "POST",
        f"exchanges/%2F/{exchange}/publish",
        {
            "properties": {"delivery_mode": 2, **properties},
            "routing_key": f"{lab.namespace}.q",
            "payload": body,
            "payload_encoding": "string",
        },
    )
    assert answer["routed"]


def command(lab: Lab, *words: str) -> str:
    """Run the command where the documentation runs it."""
    return lab.kubectl.ok(
        "exec", "-n", OPERATOR_NAMESPACE, "deploy/taskqueue-operator", "--",
        "python3", "-m", "taskqueue", "dead-letters", *words,
    )  # fmt: skip


def letters(lab: Lab) -> list[Body]:
    found: list[Body] = json.loads(
        command(lab, "list", f"{lab.namespace}/q", "--output", "json", "--verbose")
    )["letters"]
    return found


def counted(lab: Lab, number: int) -> Body:
    """Return the status once the operator has counted so many."""
    return lab.queue_status(
        lambda status: status.get("deadLetters") == number, what=f"{number} dead letters"
    )


def test_a_queue_without_dead_letters_says_so(lab: Lab) -> None:
    status = counted(lab, 0)
    condition = conditions(status)["DeadLetters"]
    assert (condition["status"], condition["reason"]) == ("False", "None")


def test_a_given_up_message_is_counted_and_listed_as_the_condition_tells(lab: Lab) -> None:
    publish(lab, "taskqueue.work", '{"page": 7}', type="give_up", correlation_id="c-1")
    status = counted(lab, 1)
    condition = conditions(status)["DeadLetters"]
    assert (condition["status"], condition["reason"]) == ("True", "Kept")
    assert {"Ready", "DeadLetters"} <= true_conditions(status)  # the queue goes on
    _, _, told = condition["message"].partition("to list: kubectl ")
    listed = lab.kubectl.ok(*shlex.split(told))
    assert "give_up" in listed
    assert "NotFound" in listed
    (letter,) = letters(lab)
    assert letter["kind"] == "direct"
    assert (letter["handler"], letter["correlationId"]) == ("give_up", "c-1")
    assert letter["payload"] == '{"page": 7}'
    assert letter["died"]
    counted(lab, 1)  # looked at, not used up


def test_what_fails_again_comes_back(lab: Lab) -> None:
    (former,) = letters(lab)
    told = command(lab, "redrive", f"{lab.namespace}/q", "--id", former["id"])
    assert "1 letter redriven" in told
    lab.until(
        lambda: [one["id"] for one in letters(lab)] not in ([], [former["id"]]),
        what="given up again",
    )
    (again,) = letters(lab)
    assert again["correlationId"] == "c-1"


def test_a_direct_message_is_redriven_and_a_tasks_is_kept(lab: Lab) -> None:
    assert "1 dead letters" in command(lab, "purge", f"{lab.namespace}/q", "--yes")
    counted(lab, 0)
    error = {"tq-error": "ConnectionError: the database was away"}
    publish(lab, "taskqueue.dead", "{}", type="echo", correlation_id="mended", headers=error)
    of_task = {**error, "tq-token": "k.none", "tq-namespace": lab.namespace, "tq-task": "gone"}
    publish(lab, "taskqueue.dead", "{}", type="echo", correlation_id="uid", headers=of_task)
    counted(lab, 2)
    told = command(lab, "redrive", f"{lab.namespace}/q")
    assert "1 letter redriven" in told
    assert "1 letter of Tasks kept" in told
    lab.until(lambda: "mended" in lab.worker_log(), what="run again")
    counted(lab, 1)
    (kept,) = letters(lab)
    assert (kept["kind"], kept["task"]) == ("task", f"{lab.namespace}/gone")


def test_the_command_says_what_is_wrong(lab: Lab) -> None:
    done = lab.kubectl(
        "exec", "-n", OPERATOR_NAMESPACE, "deploy/taskqueue-operator", "--",
        "python3", "-m", "taskqueue", "dead-letters", "list", f"{lab.namespace}/nowhere",
    )  # fmt: skip
    assert done.returncode == 1
    assert f"there is no TaskQueue {lab.namespace}/nowhere: check the name" in done.stderr


def test_a_dead_queue_that_is_deleted_is_made_again(lab: Lab) -> None:
    name = f"taskqueue-dead.{lab.namespace}.q"
    lab.broker_api("DELETE", f"queues/%2F/{name}")
    counted(lab, 0)
    lab.ready()
    publish(lab, "taskqueue.dead", "{}", headers={"tq-error": "why"})
    counted(lab, 1)
