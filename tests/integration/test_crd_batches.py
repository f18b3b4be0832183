"""What the API server takes, completes and refuses of TaskBatches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.admission import TEST_GROUP, Api, Body, assert_refused

pytestmark = pytest.mark.cluster

BATCHES = f"taskbatches.{TEST_GROUP}"


def batch(name: str = "b", /, **spec: Any) -> Body:
    """Return a TaskBatch's manifest; a field given as None is left out."""
    fields = {"queue": "q", "template": {"spec": {"handler": "h"}}, "count": 3} | spec
    return {
        "apiVersion": f"{TEST_GROUP}/v1alpha1",
        "kind": "TaskBatch",
        "metadata": {"name": name},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def test_a_minimal_batch_gets_every_default(api: Api) -> None:
    created = api.create(batch())
    assert created["spec"] == {
        "queue": "q",
        "template": {"spec": {"handler": "h"}},
        "count": 3,
        "priority": 0,
        "suspend": False,
        "cancel": False,
    }
    assert created["status"] == {"phase": "Pending", "observedGeneration": -1}


@pytest.mark.parametrize(
    "spec",
    [
        {"count": None, "items": [{"a": {"b": [1, None]}}, {}]},
        {"count": None, "items": []},
        {"count": None, "itemsFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"count": 100_000, "parallelism": 5, "maxFailedItems": 0},
        {"template": {"spec": {"handler": "h", "retry": {"backoff": {"factor": 2}}}}},
    ],
)
def test_spec_is_taken(api: Api, spec: Body) -> None:
    kept = api.create(batch(**spec))["spec"]
    assert kept.get("items") == spec.get("items")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"count": None}, "exactly one of items, count and itemsFrom"),
        ({"items": [{}]}, "exactly one of items, count and itemsFrom"),
        ({"count": 100_001}, "spec.count"),
        ({"count": None, "items": [{}] * 1001}, "spec.items"),
        ({"count": None, "items": [1]}, "spec.items"),
        ({"template": {"spec": {}}}, "handler: Required"),
        ({"template": {"spec": {"handler": "h", "payload": {}}}}, "payload"),
        ({"parallelism": 0}, "spec.parallelism"),
    ],
)
def test_spec_is_refused(api: Api, spec: Body, says: str) -> None:
    assert_refused(api.try_create(batch(**spec)), says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 4}, "count is immutable"),
        ({"count": None, "items": [{}]}, "where the items come from is immutable"),
        ({"queue": "other"}, "queue is immutable"),
        ({"template": {"spec": {"handler": "other"}}}, "template is immutable"),
    ],
)
def test_what_is_to_be_done_never_changes(api: Api, change: Body, says: str) -> None:
    api.create(batch())
    assert_refused(api.patch(f"{BATCHES}/b", {"spec": change}), says)


def test_how_it_is_done_may_change_and_a_cancel_stays(api: Api) -> None:
    api.create(batch())
    change = {"parallelism": 2, "priority": 3, "suspend": True, "cancel": True}
    assert api.patch(f"{BATCHES}/b", {"spec": change}).returncode == 0
    assert_refused(api.patch(f"{BATCHES}/b", {"spec": {"cancel": False}}), "cannot be undone")


def test_what_has_ended_stays_so(api: Api) -> None:
    api.create(batch())
    what = f"{BATCHES}/b"
    status: dict[str, Any] = {"phase": "Running", "total": 3, "succeeded": 1, "failed": 1}
    assert api.patch_status(what, {**status, "epoch": 2}).returncode == 0
    assert_refused(api.patch_status(what, {"failed": 0}), "never decrease")
    assert_refused(api.patch_status(what, {"epoch": 1}), "epoch never decreases")
    assert_refused(api.patch_status(what, None), "never decrease")
    assert api.patch_status(what, {"phase": "Failed", "succeeded": 2}).returncode == 0
    assert_refused(api.patch_status(what, {"phase": "Running"}), "never changes")
    assert_refused(api.patch(what, {"spec": {"cancel": True}}), "stays finished")


def test_columns_of_batches(api: Api) -> None:
    api.create(batch())
    status = {"phase": "Running", "total": 3, "succeeded": 1, "failed": 1, "percent": 66}
    assert api.patch_status(f"{BATCHES}/b", status).returncode == 0
    header, row = (" ".join(line.split()) for line in api.run("get", BATCHES).stdout.splitlines())
    assert header == "NAME QUEUE PHASE TOTAL SUCCEEDED FAILED PERCENT AGE"
    assert row.startswith("b q Running 3 1 1 66 ")
