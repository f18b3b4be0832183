"""What may happen in a row of the table, and what must come to be seen on the way.

Each function returns a step; ``role`` says which Task, ``it`` unless told otherwise.
"""

from __future__ import annotations

import copy
import json
import re
import time
from typing import Any

import pytest

from tests.e2e.api import Body, Refused
from tests.e2e.harness import TEMPLATE
from tests.e2e.scenario_runner import PATIENCE_SECONDS, Play
from tests.e2e.table import Shows, Step


def shows(expected: Shows, role: str = "it") -> Step:
    """A Task comes to show this."""
    return lambda play: play.see(role, expected)


def cancel(role: str = "it") -> Step:
    """Somebody sets spec.cancel."""
    return edit(role, cancel=True)


def suspend(role: str = "it") -> Step:
    """Somebody sets spec.suspend."""
    return edit(role, suspend=True)


def resume(role: str = "it") -> Step:
    """Somebody takes spec.suspend back."""
    return edit(role, suspend=False)


def edit(role: str = "it", **spec: Any) -> Step:
    """Somebody changes a Task's spec."""
    return lambda play: play.edit(role, **spec)


def create(role: str, spec: Body) -> Step:
    """Another Task is created."""
    return lambda play: play.create(role, spec)


def delete(role: str = "it") -> Step:
    """A Task is deleted."""

    def step(play: Play) -> None:
        play.harness.delete_task(play.name(role))
        play.harness.tasks.wait_gone(play.name(role))

    return step


def gone(role: str = "it") -> Step:
    """A Task comes to be deleted by the operator."""
    return lambda play: play.harness.tasks.wait_gone(play.name(role), seconds=PATIENCE_SECONDS)


def clock_passes(seconds: float) -> Step:
    """So much time passes."""
    return lambda play: time.sleep(seconds)


def refused(step: Step, says: str) -> Step:
    """The API server refuses what a step asks for; ``says`` is part of its message."""

    def wrapped(play: Play) -> None:
        with pytest.raises(Refused, match=re.escape(says)) as refusal:
            step(play)
        assert refusal.value.status == 422

    return wrapped


def late_status(role: str = "it", **status: Any) -> Step:
    """A writer who is late, such as a former leader, changes a Task's status."""

    def step(play: Play) -> None:
        path = f"{play.harness.path('tasks', play.name(role))}/status"
        play.harness.api.patch(path, {"status": status})

    return step


# TaskQueues, ConfigMaps, workers, the operator.


def edit_queue(**spec: Any) -> Step:
    """Somebody changes the row's TaskQueue."""

    def step(play: Play) -> None:
        play.harness.change_queue(play.queue, **spec)
        play.harness.queue_status(lambda _: True, play.queue, what="taken note of")

    return step


def workers_come() -> Step:
    """The row's TaskQueue, which had no workers, is given one."""
    return edit_queue(workers={"template": TEMPLATE}, scaling={"minReplicas": 1, "maxReplicas": 1})


def workers_learn() -> Step:
    """Workers of a module with one handler more, ``newcomer``, are rolled out."""
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["args"] = ["worker", "rolled_out"]
    return edit_queue(workers={"template": template})


def create_queue(**changes: Any) -> Step:
    """The row's TaskQueue is created."""
    return lambda play: play.harness.queue(play.queue, **changes)


def delete_queue() -> Step:
    """The row's TaskQueue is deleted."""
    return lambda play: play.harness.delete_queue(play.queue)


def queue_shows(kind: str, status: str, reason: str) -> Step:
    """The row's TaskQueue comes to have a condition."""

    def step(play: Play) -> None:
        play.harness.condition(kind, status, reason, play.queue)

    return step


def broker_has(messages: int) -> Step:
    """So many messages come to be in the row's queue at the broker, with no worker."""

    def step(play: Play) -> None:
        play.harness.queue_status(
            lambda status: status.get("ready") == messages,
            play.queue,
            what=f"{messages} messages at the broker",
        )

    return step


def broker_loses_queue() -> Step:
    """Somebody deletes the row's queue at the broker, and all messages with it."""
    return lambda play: play.harness.broker_api(
        "DELETE", f"queues/%2F/taskqueue.{play.harness.namespace}.{play.queue}"
    )


def broker_loses_messages() -> Step:
    """Somebody purges the row's queue at the broker."""
    return lambda play: play.harness.broker_api(
        "DELETE", f"queues/%2F/taskqueue.{play.harness.namespace}.{play.queue}/contents"
    )


def config_map(role: str, value: Any) -> Step:
    """A ConfigMap comes, or is changed; its key ``payload`` is this object, or this text."""

    def step(play: Play) -> None:
        data = {} if value is None else {"payload": _text(value)}
        name, api = play.name(role), play.harness.api
        try:
            play.harness.create_core("configmaps", name, data=data)
        except Refused as refusal:
            if refusal.status != 409:
                raise
            api.patch(play.harness.core("configmaps", name), {"data": data})

    return step


def worker_killed(role: str = "it") -> Step:
    """The worker that runs a Task is ended at once, as by a node that dies."""
    return lambda play: play.harness.kill(play.status(role)["worker"])


def no_worker_left() -> Step:
    """All workers of the row's TaskQueue come to be gone."""

    def step(play: Play) -> None:
        play.harness.until(lambda: not play.harness.pods(play.queue), what="without workers")

    return step


def operator_killed() -> Step:
    """The operator is ended at once; Kubernetes starts another."""

    def step(play: Play) -> None:
        play.met = True
        play.stage.operator_loss.come()

    return step


# A consumer of the row's own, as users write them without our SDK.


def consumer_takes() -> Step:
    """The consumer takes the next message of the row's queue and acknowledges it."""

    def step(play: Play) -> None:
        queue = f"taskqueue.{play.harness.namespace}.{play.queue}"
        with play.consumer() as connection:
            channel = connection.channel()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                method, properties, _ = channel.basic_get(queue, auto_ack=True)
                if method is not None:
                    play.taken.append(properties)
                    return
                time.sleep(0.1)
        raise AssertionError("no message came")

    return step


def consumer_reports(message: int, kind: str, **data: Any) -> Step:
    """The consumer tells of the message it took so many messages ago, 0 being the first."""

    def step(play: Play) -> None:
        properties = play.taken[message]
        headers = properties.headers
        namespace, queue = headers["tq-namespace"], headers["tq-queue"]
        event = {
            "specversion": "1.0",
            "id": f"{play.place}-{message}-{kind}",
            "type": f"dev.taskqueue.task.{kind}.v1",
            "source": "/workers/consumer",
            "subject": f"{namespace}/{headers['tq-task']}",
            "taskqueue": queue,
            "datacontenttype": "application/json",
            "data": {
                "uid": properties.correlation_id,
                "token": headers["tq-token"],
                "attempt": headers["tq-attempt"],
                "epoch": headers["tq-epoch"],
                "worker": "consumer",
                **data,
            },
        }
        with play.consumer() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(
                "taskqueue.outcomes",
                f"{namespace}.{queue}.task.{kind}",
                json.dumps(event).encode(),
                mandatory=True,
            )

    return step


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
