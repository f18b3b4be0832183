"""What the peers are given is what we are given."""

import json

import pytest

from taskqueue.api.crds import render_crds
from tests.bench import floor, jobs
from tests.bench.task_load import task_body

BOTH = pytest.mark.parametrize("kind", [floor.NOW, floor.BEFORE], ids=["now", "before"])


@BOTH
def test_the_floor_has_the_schema_of_tasks_in_a_group_of_its_own(kind: floor.Floor) -> None:
    copy = kind.copied_definition()
    assert copy["metadata"]["name"] == f"tasks.{kind.group}"
    assert copy["spec"]["group"] == kind.group != "taskqueue.dev"
    assert "shortNames" not in copy["spec"]["names"]
    schema = copy["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["x-kubernetes-validations"]
    assert set(schema["properties"]) >= {"spec", "status"}
    # The original is untouched by the copy.
    assert any("tasks.taskqueue.dev" in text for text in render_crds().values())


@BOTH
def test_the_floor_writes_the_status_of_a_task_that_succeeded(kind: floor.Floor) -> None:
    same, change = json.loads(kind.final_patch("w", "uid-1"))
    assert same == {"op": "test", "path": "/metadata/uid", "value": "uid-1"}
    assert (change["op"], change["path"]) == ("add", "/status")
    status = change["value"]
    assert status["phase"] == "Succeeded"
    assert {condition["type"] for condition in status["conditions"]} == {"Finished", "Complete"}
    assert status["history"][0]["outcome"] == "Succeeded"
    assert status["history"][0]["worker"] == status["worker"] == "w"


def test_tasks_and_copies_differ_in_their_group_only() -> None:
    ours = json.loads(task_body("a", "taskqueue.dev/v1alpha1"))
    theirs = json.loads(task_body("a", floor.NOW.api_version))
    assert {**ours, "apiVersion": ""} == {**theirs, "apiVersion": ""}


def test_a_job_starts_a_pod_for_every_completion() -> None:
    spec = jobs.no_op_job("j", completions=30, parallelism=10)["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (30, 10, "Indexed")
    assert spec["template"]["spec"]["containers"][0]["command"] == ["true"]
