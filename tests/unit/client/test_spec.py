"""Arguments and the Task that comes of them; when one that exists is the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pydantic
import pytest

from taskqueue.api.task import TaskResourceSpec
from taskqueue.client.spec import TaskOptions, differences, manifest, task_spec


@dataclass
class Mail:
    to: str


class Order(pydantic.BaseModel):
    at: datetime


def test_every_field_of_the_api_can_be_given() -> None:
    fields = set(TaskResourceSpec.model_fields)
    assert set(TaskOptions.__annotations__) == fields - {"queue", "handler", "payload", "cancel"}


def test_only_what_was_given_is_sent() -> None:
    spec = task_spec("q", "h", None, {"priority": None})
    assert manifest(spec, "a") == {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": "a"},
        "spec": {"queue": "q", "handler": "h"},
    }


def test_times_need_a_zone() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    sent = manifest(task_spec("q", "h", None, {"start_after": at}), "a")["spec"]["startAfter"]
    assert datetime.fromisoformat(sent) == at
    with pytest.raises(ValueError, match=r"no time zone: add one, such as datetime\.UTC"):
        task_spec("q", "h", None, {"start_after": at.replace(tzinfo=None)})


def test_payloads_may_be_models() -> None:
    assert task_spec("q", "h", Mail("a"), {}).payload == {"to": "a"}
    order = Order(at=datetime(2026, 1, 2, tzinfo=UTC))
    assert task_spec("q", "h", order, {}).payload == {"at": "2026-01-02T00:00:00Z"}


KEY = {"config_map_key_ref": {"name": "m", "key": "k"}}
FULL: dict[str, Any] = {
    "payload_from": [KEY],
    "depends_on": ["x", "y"],
    "start_after": datetime(2026, 1, 2, tzinfo=UTC),
    "retry": {"max_attempts": 2, "backoff": {"factor": 2}},
    "concurrency_key": "k",
}


def test_the_same_task_as_the_server_writes_it() -> None:
    wanted = task_spec("q", "h", {"a": 1.0, "b": {"c": [True, None]}}, FULL)
    there = {
        "queue": "q",
        "handler": "h",
        "payload": {"b": {"c": [True, None]}, "a": 1},
        "payloadFrom": [{"configMapKeyRef": {"name": "m", "key": "k"}}],
        "dependsOn": ["y", "x"],
        "startAfter": "2026-01-02T01:00:00+01:00",
        "retry": {"maxAttempts": 2, "backoff": {"factor": 2}},
        "concurrencyKey": "k",
        "priority": 0,
        "suspend": True,
        "cancel": True,
    }
    assert differences(wanted, there) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"queue": "r"}, "queue"),
        ({"handler": "i"}, "handler"),
        ({"payload": {"a": 1}}, "payload"),
        ({"payload": {"a": True, "b": None}}, "payload"),
        ({"payload": {"a": True, "b": [0]}}, "payload"),
        ({"payload": {"a": 1, "b": [False]}}, "payload"),
        ({"retry": {"maxAttempts": 3}}, "retry"),
        ({"dependsOn": ["x"]}, "depends_on"),
        ({"ttlSecondsAfterFinished": 3}, "ttl_seconds_after_finished"),
    ],
)
def test_another_task(change: dict[str, Any], field: str) -> None:
    wanted = task_spec("q", "h", {"a": True, "b": [False]}, {})
    there = {"queue": "q", "handler": "h", "payload": {"a": True, "b": [False]}}
    assert differences(wanted, there) == ()
    assert differences(wanted, there | change) == (field,)


def test_integers_that_the_server_would_change_are_refused() -> None:
    largest = {"a": [{"b": 2**63 - 1}, -(2**63), True]}
    assert task_spec("q", "echo", largest, {}).payload == largest
    with pytest.raises(TypeError, match=r"payload\.a\[0\]\.b: an integer of more than 64 bits"):
        task_spec("q", "echo", {"a": [{"b": 2**63}]}, {})
