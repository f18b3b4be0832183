"""The views of TaskQueues and Tasks: columns, field selectors, scale, kubectl explain."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from taskqueue.api.crds import DEFINITIONS, structural_schema
from tests.integration.admission import (
    QUEUES,
    STARTED,
    SUCCEEDED,
    TASKS,
    TEST_GROUP,
    Api,
    Body,
    queue,
    task,
)

pytestmark = pytest.mark.cluster


def table(api: Api, *args: str) -> list[str]:
    """Return kubectl's table, the header first, one space between two cells."""
    done = api.run("get", *args)
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_columns_of_tasks(api: Api) -> None:
    api.create(task("done"))
    api.create(task("new"))
    api.patch_status(f"{TASKS}/done", SUCCEEDED | {"reason": "AllGood"})
    header, done, new = table(api, TASKS)
    assert header == "NAME QUEUE HANDLER PHASE ATTEMPTS REASON FINISHED AGE"
    assert done.startswith("done thumbnails resize Succeeded 1 AllGood ")
    assert new.startswith("new thumbnails resize Pending ")
    assert table(api, TASKS, "-o", "wide")[0] == f"{header} WORKER COMPLETED TTL MESSAGE"


def test_columns_of_queues(api: Api) -> None:
    api.create(queue())
    ready = {"type": "Ready", "status": "True", "reason": "Up", "lastTransitionTime": STARTED}
    status = {
        "conditions": [ready],
        "backlog": 12,
        "running": 3,
        "replicas": 4,
        "desiredReplicas": 5,
        "totals": {"succeeded": 6, "failed": 7, "cancelled": 8},
    }
    done = api.patch_status(f"{QUEUES}/thumbnails", status)
    assert done.returncode == 0, done.stderr
    header, row = table(api, QUEUES)
    assert header == "NAME READY BACKLOG RUNNING WORKERS DESIRED SUCCEEDED FAILED AGE"
    assert row.startswith("thumbnails True 12 3 4 5 6 7 ")


def test_tasks_are_selected_by_phase_and_queue(api: Api) -> None:
    for name in ("a", "b", "c"):
        api.create(task(name, queue="slow" if name == "c" else "fast"))
    api.patch_status(f"{TASKS}/b", SUCCEEDED)

    def selected(selector: str) -> list[str]:
        done = api.run("get", TASKS, "--field-selector", selector, "-o", "name")
        assert done.returncode == 0, done.stderr
        return [line.removeprefix(f"task.{TEST_GROUP}/") for line in done.stdout.split()]

    assert selected("status.phase=Pending") == ["a", "c"]
    assert selected("status.phase!=Pending") == ["b"]
    assert selected("status.phase!=Succeeded,status.phase!=Failed") == ["a", "c"]
    assert selected("spec.queue=slow") == ["c"]
    assert selected("spec.queue=fast,status.phase=Succeeded") == ["b"]


def test_the_scale_subresource(api: Api) -> None:
    api.create(queue())
    api.patch_status(
        f"{QUEUES}/thumbnails", {"replicas": 2, "selector": "taskqueue.dev/queue=thumbnails"}
    )
    done = api.run("scale", f"{QUEUES}/thumbnails", "--replicas=3")
    assert done.returncode == 0, done.stderr
    assert api.get(f"{QUEUES}/thumbnails")["spec"]["workers"]["replicas"] == 3
    scale = api.json("get", f"{QUEUES}/thumbnails", "--subresource=scale")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "taskqueue.dev/queue=thumbnails"}


def explained() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every object field of the resources, and what its own fields are explained by."""

    def walk(path: str, schema: Body) -> Iterator[tuple[str, dict[str, str]]]:
        fields = schema.get("properties", {})
        if fields:
            yield path, {name: below.get("description", "") for name, below in fields.items()}
        for name, below in fields.items():
            yield from walk(f"{path}.{name}", below.get("items", below))

    for definition in DEFINITIONS:
        schema = structural_schema(definition.model)
        for part in ("spec", "status"):
            yield from walk(f"{definition.plural}.{part}", schema["properties"][part])


def test_kubectl_explains_every_field(api: Api) -> None:
    for path, fields in explained():
        text = explain(api, path)
        for name, description in fields.items():
            assert f" {name} <" in text, path
            assert " ".join(description.split()) in text, f"{path}.{name}"


def explain(api: Api, path: str) -> str:
    """Return kubectl's description of a field; a new CRD is published within seconds."""
    deadline = time.monotonic() + 30
    args = ("explain", path, f"--api-version={TEST_GROUP}/v1alpha1")
    while (done := api.run(*args)).returncode != 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.replace("\t", " ").split())
