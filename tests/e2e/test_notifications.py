"""Listeners on taskqueue.events: the sample of examples/subscriber, run as its README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import RabbitMQ
from tests.e2e.harness import Harness

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

SAMPLE = Path(__file__).parents[2] / "examples" / "subscriber"


class Subscriber:
    """The sample as a process; its lines, as they come."""

    def __init__(
        self, harness: Harness, rabbitmq: RabbitMQ, user: str, password: str, *options: str
    ) -> None:
        self._harness = harness
        self.lines: list[str] = []
        self.complaints: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, str(SAMPLE / "subscriber.py"), f"{harness.namespace}/q", *options],
            env={
                **os.environ,
                "AMQP_URI": f"amqp://{user}:{password}@{rabbitmq.host}:{rabbitmq.port}/",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stream, lines in (
            (self._process.stdout, self.lines),
            (self._process.stderr, self.complaints),
        ):
            threading.Thread(target=_read, args=(stream, lines), daemon=True).start()

    def listens(self, *, times: int = 1) -> None:
        """Return once it has bound its queue, for the so many-th time."""
        self._harness.until(
            lambda: sum("listening" in line for line in self.complaints) >= times,
            what=f"listening for time {times}: {self.complaints}",
        )

    def line(self, name: str, *, seconds: float = 60) -> str:
        """Return what it printed of a Task, or of what else has this in its line."""
        self._harness.until(lambda: bool(self.of(name)), what=f"told of {name}", seconds=seconds)
        (line,) = self.of(name)
        return line

    def of(self, name: str) -> list[str]:
        """Return the lines of a Task."""
        return [line for line in list(self.lines) if f" {self._harness.namespace}/{name} " in line]

    def end(self) -> int:
        """Stop it as Kubernetes does; return its exit status."""
        self._process.terminate()
        return self._process.wait(30)


def _read(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.ready()
    harness.available(1)


@pytest.fixture(scope="module")
def user(harness: Harness) -> Iterator[tuple[str, str]]:
    """A broker user with the permissions of the README, and no more."""
    name, password = f"subscriber-{harness.namespace}", uuid.uuid4().hex
    own = rf"subscriber\.{harness.namespace}\.q"
    harness.broker_api("PUT", f"users/{name}", {"password": password, "tags": ""})
    harness.broker_api(
        "PUT",
        f"permissions/%2F/{name}",
        {
            "configure": f"^{own}$",
            "write": f"^{own}$",
            "read": rf"^({own}|taskqueue\.events)$",
        },
    )
    harness.broker_api(
        "PUT",
        f"topic-permissions/%2F/{name}",
        {"exchange": "taskqueue.events", "write": "^$", "read": rf"^{harness.namespace}\.q\."},
    )
    yield name, password
    harness.broker_api("DELETE", f"users/{name}")


@pytest.fixture(scope="module")
def subscriber(harness: Harness, rabbitmq: RabbitMQ, user: tuple[str, str]) -> Iterator[Subscriber]:
    subscriber = Subscriber(harness, rabbitmq, *user)
    try:
        subscriber.listens()
        yield subscriber
        assert subscriber.end() == 0
    finally:
        subscriber.end()
        harness.broker_api("DELETE", f"queues/%2F/subscriber.{harness.namespace}.q")


def publish(harness: Harness, exchange: str, key: str, body: Any, **properties: Any) -> None:
    """Publish as any client with the rights may."""
    answer = harness.broker_api(
        "POST",
        f"exchanges/%2F/{exchange}/publish",
        {
            "properties": {"delivery_mode": 2, **properties},
            "routing_key": key,
            "payload": json.dumps(body),
            "payload_encoding": "string",
        },
    )
    assert answer["routed"]


def test_a_success_is_told_with_its_result(harness: Harness, subscriber: Subscriber) -> None:
    status = harness.finished(harness.task("good", payload={"a": 1, "b": None}))
    told = subscriber.line("good")
    when, _, rest = told.partition(" ")
    assert when == status["completionTime"]
    assert rest.endswith('good Succeeded after 1 attempt: {"a": 1, "b": null}')


def test_a_failure_is_told_with_its_error(harness: Harness, subscriber: Subscriber) -> None:
    retry = {"maxAttempts": 2}
    harness.finished(harness.task("bad", "flaky", payload={"failures": 2}, retry=retry))
    assert subscriber.line("bad").endswith(
        "Failed after 2 attempts: ConnectionError: the network is away at attempt 2"
    )


def test_a_failure_is_told_to_people_too(harness: Harness) -> None:
    harness.finished(harness.task("for-people", "give_up"))
    harness.finished(harness.task("well"))

    def described(name: str) -> str:
        return harness.kubectl.ok("describe", "tqt", name, "-n", harness.namespace)

    reason = r"Warning\s+NonRetryable\s.*\staskqueue.dev/operator\s.*there is no such page"
    harness.until(lambda: bool(re.search(reason, described("for-people"))), what="told by an Event")
    assert re.search(r"Events:\s+<none>", described("well"))


def test_a_queue_in_trouble_is_told_to_people(harness: Harness) -> None:
    def events() -> list[tuple[str, str]]:
        found = harness.api.get(
            f"/apis/events.k8s.io/v1/namespaces/{harness.namespace}/events",
            fieldSelector="reportingController=taskqueue.dev/operator",
        )
        return [
            (event["type"], event["reason"])
            for event in found["items"]
            if event["regarding"]["name"] == "troubled"
        ]

    harness.queue("troubled", broker={"connectionSecret": {"name": "not-yet"}})
    harness.until(lambda: ("Warning", "SecretNotFound") in events(), what="a Warning")
    harness.secret("not-yet")
    harness.until(lambda: ("Normal", "Connected") in events(), what="its end told")
    assert len(events()) == 2


def test_a_cancelled_task_is_told(harness: Harness, subscriber: Subscriber) -> None:
    harness.task("unwanted", suspend=True)
    harness.api.patch(harness.path("tasks", "unwanted"), {"spec": {"cancel": True}})
    assert harness.finished("unwanted")["phase"] == "Cancelled"
    assert subscriber.line("unwanted").endswith("Cancelled after 0 attempts")


def test_a_direct_messages_end_is_told_to_who_asked(
    harness: Harness, subscriber: Subscriber
) -> None:
    asked = uuid.uuid4().hex
    key = f"{harness.namespace}.q"
    publish(harness, "taskqueue.direct", key, {"a": 1}, type="echo", correlation_id=asked)
    told = until_line(harness, subscriber, lambda line: asked in line)
    assert f" {harness.namespace}/q (direct message, correlation id {asked}) Succeeded" in told
    assert told.endswith('{"a": 1}')


def test_a_direct_messages_failure_is_told_too(harness: Harness, subscriber: Subscriber) -> None:
    asked = uuid.uuid4().hex
    key = f"{harness.namespace}.q"
    publish(harness, "taskqueue.direct", key, {}, type="give_up", correlation_id=asked)
    told = until_line(harness, subscriber, lambda line: asked in line)
    assert told.endswith("NotFound: there is no such page")


def test_a_repeat_is_dropped(harness: Harness, subscriber: Subscriber) -> None:
    event = {
        "source": f"/namespaces/{harness.namespace}/taskqueues/q",
        "id": "the-same.1",
        "subject": f"{harness.namespace}/repeated",
        "time": "2026-01-01T00:00:00Z",
        "data": {"phase": "Succeeded", "attempts": 1},
    }
    key = f"{harness.namespace}.q.task.succeeded"
    for _ in range(2):
        publish(harness, "taskqueue.events", key, event)
    publish(
        harness,
        "taskqueue.events",
        key,
        {**event, "id": "another.1", "subject": f"{harness.namespace}/next"},
    )
    subscriber.line("next")
    assert len(subscriber.of("repeated")) == 1


def test_what_happens_while_it_is_away_is_kept_for_it(
    harness: Harness, subscriber: Subscriber, user: tuple[str, str]
) -> None:
    def connections() -> list[str]:
        found = harness.broker_api("GET", "connections")
        return [one["name"] for one in found if one.get("user") == user[0]]

    # The management plugin shows a connection some seconds after it was opened.
    harness.until(lambda: bool(connections()), what="connected")
    (name,) = connections()
    harness.broker_api("DELETE", f"connections/{name.replace(' ', '%20').replace('>', '%3E')}")
    harness.finished(harness.task("meanwhile"))
    subscriber.listens(times=2)
    assert "Succeeded" in subscriber.line("meanwhile")


def test_an_end_is_told_again_when_its_outcome_comes_again(
    harness: Harness, rabbitmq: RabbitMQ
) -> None:
    """As after an operator that recorded an end and was killed before it could tell it."""
    copies, late = f"copies.{harness.namespace}", f"late.{harness.namespace}"
    key = f"{harness.namespace}.q.task.succeeded"
    harness.broker_api("PUT", f"queues/%2F/{copies}", {"durable": True})
    harness.broker_api(
        "POST", f"bindings/%2F/e/taskqueue.outcomes/q/{copies}", {"routing_key": key}
    )
    listener = None
    try:
        harness.finished(harness.task("told-late"))
        request = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        (copy,) = harness.broker_api("POST", f"queues/%2F/{copies}/get", request)
        listener = Subscriber(
            harness, rabbitmq, rabbitmq.username, rabbitmq.password, f"--queue={late}"
        )
        listener.listens()  # so late that it has not heard the first time
        outcome = json.loads(copy["payload"])
        assert outcome["subject"] == f"{harness.namespace}/told-late"
        publish(harness, "taskqueue.outcomes", key, outcome)
        assert "Succeeded" in listener.line("told-late")
    finally:
        if listener is not None:
            listener.end()
        for queue in (copies, late):
            with suppress(requests.HTTPError):
                harness.broker_api("DELETE", f"queues/%2F/{queue}")


def test_it_runs_in_the_cluster(harness: Harness, rabbitmq: RabbitMQ) -> None:
    harness.create_core(
        "secrets",
        "listener",
        stringData={
            "uri": f"amqp://{rabbitmq.username}:{rabbitmq.password}"
            "@rabbitmq.rabbitmq.svc.cluster.local:5672/"
        },
    )
    objects = list(yaml.safe_load_all(harness.kubectl.ok("kustomize", str(SAMPLE))))
    (deployment,) = [one for one in objects if one["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    # As the README has it, but for the names that this test chose.
    container["command"] = [word.replace("/work", "/q") for word in container["command"]]
    container["command"].append("--queue=in-the-cluster")
    (uri,) = [one for one in container["env"] if one["name"] == "AMQP_URI"]
    uri["valueFrom"]["secretKeyRef"]["name"] = "listener"
    harness.kubectl.ok(
        "apply", "-n", harness.namespace, "-f", "-", input=yaml.safe_dump_all(objects)
    )

    def log() -> str:
        done = harness.kubectl("logs", "-n", harness.namespace, "deploy/subscriber", "--tail=-1")
        return done.stdout + done.stderr

    try:
        harness.until(lambda: "listening" in log(), what="listening in the cluster")
        harness.finished(harness.task("in-the-cluster"))
        told = f"{harness.namespace}/in-the-cluster Succeeded after 1 attempt"
        harness.until(lambda: told in log(), what=told)
    finally:
        harness.kubectl.ok("delete", "deploy/subscriber", "-n", harness.namespace)
        harness.broker_api("DELETE", "queues/%2F/in-the-cluster")


def until_line(harness: Harness, subscriber: Subscriber, holds: Callable[[str], bool]) -> str:
    """Return the one line of which this holds, once there is one."""
    harness.until(
        lambda: any(map(holds, list(subscriber.lines))), what="told of the direct message"
    )
    (line,) = filter(holds, list(subscriber.lines))
    return line
