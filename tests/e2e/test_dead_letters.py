"""Given-up messages: counted in the TaskQueue's status, and handled by the command in the pod."""

import json
import shlex
from typing import Any

import pytest

from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.names import OUTCOMES_EXCHANGE, WORK_EXCHANGE
from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, Harness, conditions, true_conditions
from tests.faults.raw_messages import UNREADABLE, publish_raw
from tests.integration.amqp.endpoint import Rabbitmq

pytestmark = [pytest.mark.cluster, pytest.mark.broker]


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.ready()
    harness.available(1)


def publish(harness: Harness, exchange: str, body: str, **properties: Any) -> None:
    """Publish as any client, or worker, may."""
    answer = harness.broker_api(
        "POST",
        f"exchanges/%2F/{exchange}/publish",
        {
            "properties": {"delivery_mode": 2, **properties},
            "routing_key": f"{harness.namespace}.q",
            "payload": body,
            "payload_encoding": "string",
        },
    )
    assert answer["routed"]


def command(harness: Harness, *words: str) -> str:
    """Run the command where the documentation runs it."""
    return harness.kubectl.ok(
        "exec", "-n", OPERATOR_NAMESPACE, "deploy/taskqueue-operator", "--",
        "python3", "-m", "taskqueue", "dead-letters", *words,
    )  # fmt: skip


def letters(harness: Harness) -> list[Body]:
    found: list[Body] = json.loads(
        command(harness, "list", f"{harness.namespace}/q", "--output", "json", "--verbose")
    )["letters"]
    return found


def counted(harness: Harness, number: int) -> Body:
    """Return the status once the operator has counted so many."""
    return harness.queue_status(
        lambda status: status.get("deadLetters") == number, what=f"{number} dead letters"
    )


def test_a_queue_without_dead_letters_says_so(harness: Harness) -> None:
    status = counted(harness, 0)
    condition = conditions(status)["DeadLetters"]
    assert (condition["status"], condition["reason"]) == ("False", "None")


def test_a_given_up_message_is_counted_and_listed_as_the_condition_tells(harness: Harness) -> None:
    publish(harness, "taskqueue.direct", '{"page": 7}', type="give_up", correlation_id="c-1")
    status = counted(harness, 1)
    condition = conditions(status)["DeadLetters"]
    assert (condition["status"], condition["reason"]) == ("True", "Kept")
    assert {"Ready", "DeadLetters"} <= true_conditions(status)  # the queue goes on
    _, _, told = condition["message"].partition("to list: kubectl ")
    listed = harness.kubectl.ok(*shlex.split(told))
    assert "give_up" in listed
    assert "NotFound" in listed
    (letter,) = letters(harness)
    assert letter["kind"] == "direct"
    assert (letter["handler"], letter["correlationId"]) == ("give_up", "c-1")
    assert letter["payload"] == '{"page": 7}'
    assert letter["died"]
    counted(harness, 1)  # looked at, not used up


def test_what_fails_again_comes_back(harness: Harness) -> None:
    (former,) = letters(harness)
    told = command(harness, "redrive", f"{harness.namespace}/q", "--id", former["id"])
    assert "1 message redriven" in told
    harness.until(
        lambda: [one["id"] for one in letters(harness)] not in ([], [former["id"]]),
        what="given up again",
    )
    (again,) = letters(harness)
    assert again["correlationId"] == "c-1"


def test_a_direct_message_is_redriven_and_a_tasks_is_kept(harness: Harness) -> None:
    assert "1 dead letters" in command(harness, "purge", f"{harness.namespace}/q", "--yes")
    counted(harness, 0)
    error = {"tq-error": "ConnectionError: the database was away"}
    publish(harness, "taskqueue.dead", "{}", type="echo", correlation_id="mended", headers=error)
    of_task = {**error, "tq-token": "k.none", "tq-namespace": harness.namespace, "tq-task": "gone"}
    publish(harness, "taskqueue.dead", "{}", type="echo", correlation_id="uid", headers=of_task)
    counted(harness, 2)
    told = command(harness, "redrive", f"{harness.namespace}/q")
    assert "1 message redriven" in told
    assert "1 message of Tasks kept" in told
    harness.until(lambda: "mended" in harness.worker_log(), what="run again")
    counted(harness, 1)
    (kept,) = letters(harness)
    assert (kept["kind"], kept["task"]) == ("task", f"{harness.namespace}/gone")


def test_the_command_says_what_is_wrong(harness: Harness) -> None:
    done = harness.kubectl(
        "exec", "-n", OPERATOR_NAMESPACE, "deploy/taskqueue-operator", "--",
        "python3", "-m", "taskqueue", "dead-letters", "list", f"{harness.namespace}/nowhere",
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        f"TaskQueue {harness.namespace}/nowhere does not exist: check its namespace and name"
        in done.stderr
    )


def test_a_dead_queue_that_is_deleted_is_made_again(harness: Harness) -> None:
    name = f"taskqueue-dead.{harness.namespace}.q"
    harness.broker_api("DELETE", f"queues/%2F/{name}")
    counted(harness, 0)
    harness.ready()
    publish(harness, "taskqueue.dead", "{}", headers={"tq-error": "why"})
    counted(harness, 1)


async def test_messages_nobody_can_read_are_kept_and_stop_nobody(
    harness: Harness, rabbitmq: Rabbitmq
) -> None:
    command(harness, "purge", f"{harness.namespace}/q", "--yes")
    counted(harness, 0)
    parameters = BrokerParameters(
        host=rabbitmq.host,
        port=rabbitmq.port,
        username=rabbitmq.username,
        password=rabbitmq.password,
    )
    connection = await connect(parameters, name="unreadable")
    channel = await connection.channel()
    key, bodies = f"{harness.namespace}.q", set()
    for number, entries in enumerate(UNREADABLE.values()):
        for exchange, suffix in ((WORK_EXCHANGE, ""), (OUTCOMES_EXCHANGE, ".task.succeeded")):
            body = f"{exchange} {number}"
            bodies.add(body)
            publish_raw(channel, exchange, key + suffix, entries, body.encode())
    await connection.close()
    harness.task("after", "echo")
    harness.finished("after")
    status = counted(harness, len(bodies))
    assert {one["payload"] for one in letters(harness)} == bodies
    assert {"Ready", "BrokerConnected"} <= true_conditions(status)
