"""What may change of a TaskQueue and of a Task that has not ended, and what may not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.integration.admission import (
    QUEUES,
    TASKS,
    Api,
    Body,
    assert_refused,
    queue,
    task,
)

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Change:
    """A patch to a Task, and what the refusal says."""

    patch: Body
    says: str
    before: Body = field(default_factory=dict)


PAYLOAD = {"payload": {"a": {"b": [1, {"c": 2}]}, "d": 1}}


CANCELLED = {"cancel": True}
SOURCES = {"payloadFrom": [{"configMapKeyRef": {"name": "a", "key": "a.json"}}]}
OTHER_SOURCE = {"configMapKeyRef": {"name": "b", "key": "b.json"}}


@pytest.mark.parametrize(
    "change",
    [
        Change({"queue": "other"}, "queue is immutable: create a new Task"),
        Change({"handler": "other"}, "handler is immutable: create a new Task"),
        Change({"payload": {"a": {"b": [1, {"c": 3}]}}}, "payload is immutable", PAYLOAD),
        Change({"payload": {"d": None}}, "payload is immutable", PAYLOAD),
        Change({"payload": {"e": 1}}, "payload is immutable", PAYLOAD),
        Change({"payload": None}, "payload is immutable: create a new Task", PAYLOAD),
        Change({"payload": {"a": 1}}, "payload is immutable"),
        Change({"payloadFrom": [OTHER_SOURCE]}, "payloadFrom is immutable", SOURCES),
        Change(
            {"payloadFrom": [*SOURCES["payloadFrom"], OTHER_SOURCE]},
            "payloadFrom is immutable: create a new Task",
            SOURCES,
        ),
        Change({"payloadFrom": []}, "payloadFrom is immutable: create a new Task", SOURCES),
        Change({"payloadFrom": None}, "payloadFrom is immutable: create a new Task", SOURCES),
        Change(SOURCES, "payloadFrom is immutable: create a new Task"),
        Change({"cancel": False}, "cancel cannot be undone: create a new Task", CANCELLED),
        Change({"cancel": None}, "cancel cannot be undone: create a new Task", CANCELLED),
        Change({"dependsOn": ["a", "t"]}, "remove its own name from spec.dependsOn"),
        Change({"dependsOn": ["a", "a"]}, 'spec.dependsOn[1]: Duplicate value: "a"'),
        Change({"startAfter": "0206-01-02T03:04:05Z"}, "correct it, or omit it"),
    ],
    ids=lambda change: "-".join([*change.patch, *change.before]),
)
def test_forbidden_change_is_refused(api: Api, change: Change) -> None:
    api.create(task(**change.before))
    assert_refused(api.patch(f"{TASKS}/t", {"spec": change.patch}), change.says)


def test_allowed_change_before_the_end(api: Api) -> None:
    api.create(task(**PAYLOAD))
    changes: list[Body] = [
        {"priority": 7, "retry": {"maxAttempts": 9}, "attemptTimeoutSeconds": 5},
        {"dependsOn": ["a"], "startAfter": "2026-01-02T03:04:05Z", "concurrencyKey": "k"},
        {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 0},
        {"suspend": True},
        {"suspend": False},
        {"cancel": True},
        {"cancel": True, "suspend": True},
    ]
    for change in changes:
        done = api.patch(f"{TASKS}/t", {"spec": change | PAYLOAD})
        assert done.returncode == 0, done.stderr
        spec = api.get(f"{TASKS}/t")["spec"]
        assert {key: spec[key] for key in change} == change


def test_fields_may_be_removed_before_the_end(api: Api) -> None:
    given = {"dependsOn": ["a"], "startAfter": "2026-01-02T03:04:05Z", "concurrencyKey": "k"}
    api.create(task(**given, suspend=True))
    done = api.patch(f"{TASKS}/t", {"spec": dict.fromkeys([*given, "suspend"])})
    assert done.returncode == 0, done.stderr
    assert not {*given, "suspend"} & api.get(f"{TASKS}/t")["spec"].keys()


def test_a_queue_moves_from_one_kind_of_broker_to_the_other_in_one_step(api: Api) -> None:
    api.create(queue())
    reference = {"rabbitmqClusterReference": {"name": "rabbit"}}
    refused = api.patch(f"{QUEUES}/thumbnails", {"spec": {"broker": reference}})
    assert_refused(refused, "give exactly one of connectionSecret and rabbitmqClusterReference")
    both = {"broker": reference | {"connectionSecret": None}}
    done = api.patch(f"{QUEUES}/thumbnails", {"spec": both})
    assert done.returncode == 0, done.stderr


def test_a_queue_moves_from_one_way_of_scaling_to_another_in_one_step(api: Api) -> None:
    api.create(queue(workers={"template": {"spec": {}}}))
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "w"}
    refused = api.patch(f"{QUEUES}/thumbnails", {"spec": {"workers": {"scaleTargetRef": ref}}})
    assert_refused(refused, "template and scaleTargetRef exclude each other")
    drain_time = {"type": "DrainTime", "seconds": 60}
    changes: list[Body] = [
        {"workers": {"scaleTargetRef": ref, "template": None}},
        {"workers": {"scaleTargetRef": None, "template": {"spec": {}}}},
        {"scaling": {"target": drain_time, "fallback": {"replicas": 10}}},
        {"scaling": {"target": {"type": "Backlog", "seconds": None}}},
        {"scaling": {"maxReplicas": 5, "fallback": None}},
    ]
    for change in changes:
        done = api.patch(f"{QUEUES}/thumbnails", {"spec": change})
        assert done.returncode == 0, done.stderr
    refused = api.patch(f"{QUEUES}/thumbnails", {"spec": {"scaling": {"target": {"seconds": 1}}}})
    assert_refused(refused, "set type to DrainTime, or omit seconds")


def test_a_queue_name_rule_does_not_stop_other_changes(api: Api) -> None:
    api.create(queue())
    done = api.patch(f"{QUEUES}/thumbnails", {"spec": {"scaling": {"minReplicas": 1}}})
    assert done.returncode == 0, done.stderr
    refused = api.patch(f"{QUEUES}/thumbnails", {"spec": {"scaling": {"maxReplicas": 0}}})
    assert_refused(refused, "lower minReplicas or raise maxReplicas")
