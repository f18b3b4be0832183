"""The steps of lifecycle cases: what happens, and what to wait for.

Each function returns a step. ``role`` selects the Task, ``it`` by default.
"""

from __future__ import annotations

import copy
import json
import re
import time
from typing import Any

import pytest

from tests.e2e.api import Body, Refused
from tests.e2e.case_runner import RunningCase
from tests.e2e.harness import PATIENCE_SECONDS, TEMPLATE
from tests.e2e.lifecycle_case import ExpectedStatus, Step


def reaches(expected: ExpectedStatus, role: str = "it") -> Step:
    """Wait until a Task has this status."""
    return lambda case: case.wait_for_status(role, expected)


def cancel(role: str = "it") -> Step:
    """Set spec.cancel."""
    return edit(role, cancel=True)


def suspend(role: str = "it") -> Step:
    """Set spec.suspend."""
    return edit(role, suspend=True)


def resume(role: str = "it") -> Step:
    """Unset spec.suspend."""
    return edit(role, suspend=False)


def edit(role: str = "it", **spec: Any) -> Step:
    """Change a Task's spec."""
    return lambda case: case.edit(role, **spec)


def create(role: str, spec: Body) -> Step:
    """Create another Task."""
    return lambda case: case.create(role, spec)


def delete(role: str = "it") -> Step:
    """Delete a Task, and wait until it has disappeared."""

    def step(case: RunningCase) -> None:
        case.harness.delete_task(case.name(role))
        case.harness.tasks.wait_deleted(case.name(role))

    return step


def deleted_by_operator(role: str = "it") -> Step:
    """Wait until the operator has deleted a Task."""
    return lambda case: case.harness.tasks.wait_deleted(case.name(role), seconds=PATIENCE_SECONDS)


def time_passes(seconds: float) -> Step:
    """Sleep for some seconds."""
    return lambda case: time.sleep(seconds)


def refused(step: Step, says: str) -> Step:
    """Expect the API server to refuse a step; ``says`` is part of its message."""

    def wrapped(case: RunningCase) -> None:
        with pytest.raises(Refused, match=re.escape(says)) as refusal:
            step(case)
        assert refusal.value.status == 422

    return wrapped


def late_status(role: str = "it", **status: Any) -> Step:
    """Write a Task's status as a late writer does, such as a former leader."""

    def step(case: RunningCase) -> None:
        path = f"{case.harness.path('tasks', case.name(role))}/status"
        case.harness.api.patch(path, {"status": status})

    return step


# TaskQueues, ConfigMaps, workers, the operator.


def edit_queue(**spec: Any) -> Step:
    """Change the case's TaskQueue, and wait until the operator has observed it."""

    def step(case: RunningCase) -> None:
        case.harness.change_queue(case.queue, **spec)
        case.harness.queue_status(lambda _: True, case.queue, what="the newest generation observed")

    return step


def workers_added() -> Step:
    """Give the case's TaskQueue, which had no workers, one worker."""
    return edit_queue(workers={"template": TEMPLATE}, scaling={"minReplicas": 1, "maxReplicas": 1})


def workers_rolled_out() -> Step:
    """Roll out workers of a module with one more handler, ``newcomer``."""
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["args"] = ["worker", "rolled_out"]
    return edit_queue(workers={"template": template})


def create_queue(**changes: Any) -> Step:
    """Create the case's TaskQueue."""
    return lambda case: case.harness.queue(case.queue, **changes)


def delete_queue() -> Step:
    """Delete the case's TaskQueue."""
    return lambda case: case.harness.delete_queue(case.queue)


def queue_has_condition(kind: str, status: str, reason: str) -> Step:
    """Wait until the case's TaskQueue has a condition."""

    def step(case: RunningCase) -> None:
        case.harness.condition(kind, status, reason, case.queue)

    return step


def broker_has(messages: int) -> Step:
    """Wait until the case's queue at the broker, which no worker reads, has this many messages."""

    def step(case: RunningCase) -> None:
        case.harness.queue_status(
            lambda status: status.get("ready") == messages,
            case.queue,
            what=f"{messages} messages at the broker",
        )

    return step


def broker_loses_queue() -> Step:
    """Delete the case's queue at the broker, and all messages with it."""
    return lambda case: case.harness.broker_api(
        "DELETE", f"queues/%2F/taskqueue.{case.harness.namespace}.{case.queue}"
    )


def broker_loses_messages() -> Step:
    """Purge the case's queue at the broker."""
    return lambda case: case.harness.broker_api(
        "DELETE", f"queues/%2F/taskqueue.{case.harness.namespace}.{case.queue}/contents"
    )


def config_map(role: str, value: Any) -> Step:
    """Create or change a ConfigMap; its key ``payload`` gets this text, or this object as JSON."""

    def step(case: RunningCase) -> None:
        data = {} if value is None else {"payload": _text(value)}
        name, api = case.name(role), case.harness.api
        try:
            case.harness.create_core("configmaps", name, data=data)
        except Refused as refusal:
            if refusal.status != 409:
                raise
            api.patch(case.harness.core("configmaps", name), {"data": data})

    return step


def worker_killed(role: str = "it") -> Step:
    """Kill the worker that runs a Task, as a dying node does."""
    return lambda case: case.harness.kill(case.status(role)["worker"])


def no_worker_left() -> Step:
    """Wait until the case's TaskQueue has no workers."""

    def step(case: RunningCase) -> None:
        case.harness.until(lambda: not case.harness.pods(case.queue), what="without workers")

    return step


def operator_killed() -> Step:
    """Kill the operator, once for all cases; Kubernetes starts another."""

    def step(case: RunningCase) -> None:
        case.operator_was_killed = True
        case.runner.operator_loss.arrive_and_wait()

    return step


# A consumer for one case, written as users do without our SDK.


def consumer_receives() -> Step:
    """Receive the next message of the case's queue, and acknowledge it."""

    def step(case: RunningCase) -> None:
        queue = f"taskqueue.{case.harness.namespace}.{case.queue}"
        with case.consumer() as connection:
            channel = connection.channel()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                method, properties, _ = channel.basic_get(queue, auto_ack=True)
                if method is not None:
                    case.received.append(properties)
                    return
                time.sleep(0.1)
        raise AssertionError(f"no message in {queue} within {PATIENCE_SECONDS:g} s")

    return step


def consumer_reports(message: int, kind: str, **data: Any) -> Step:
    """Report an outcome of the received message with this index; 0 is the first received."""

    def step(case: RunningCase) -> None:
        properties = case.received[message]
        headers = properties.headers
        namespace, queue = headers["tq-namespace"], headers["tq-queue"]
        event = {
            "specversion": "1.0",
            "id": f"{case.prefix}-{message}-{kind}",
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
        with case.consumer() as connection:
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
