"""Who submitted and cancelled a Task, by the metadata of its object."""

from __future__ import annotations

from typing import Any

import pytest

from taskqueue.kubernetes.task_origin import CANCELLED_BY, RETRY_OF, SUBMITTED_BY, origin_of
from taskqueue.model.origin import TaskOrigin


def write(manager: str, time: str, *fields: str, **more: str) -> dict[str, Any]:
    spec: dict[str, Any] = {f"f:{name}": {} for name in fields}
    return {"manager": manager, "time": time, "fieldsV1": {"f:spec": spec}, **more}


CREATED = write("kubectl-create", "2026-01-01T00:00:00Z", "queue", "cancel")
CANCELLED = write("kubectl-patch", "2026-01-02T00:00:00Z", "cancel")
STATUS = write("taskqueue-operator", "2025-01-01T00:00:00Z", subresource="status")


@pytest.mark.parametrize("fields", [[CREATED, STATUS, CANCELLED], [CANCELLED, CREATED, STATUS]])
def test_field_managers_say_who_wrote_what(fields: list[dict[str, Any]]) -> None:
    found = origin_of({"managedFields": fields}, cancelled=True)
    assert (found.submitted_by, found.cancelled_by) == ("kubectl-create", "kubectl-patch")


def test_nobody_has_cancelled_what_is_not() -> None:
    assert origin_of({"managedFields": [CREATED]}, cancelled=False).cancelled_by == ""


def test_annotations_of_a_program_go_first_and_labels_are_kept() -> None:
    labels = {RETRY_OF: "before", "app": "x"}
    metadata = {
        "annotations": {SUBMITTED_BY: "ada", CANCELLED_BY: "bob"},
        "labels": labels,
        "managedFields": [CREATED, CANCELLED],
    }
    assert origin_of(metadata, cancelled=True) == TaskOrigin(
        labels=labels, submitted_by="ada", cancelled_by="bob", retry_of="before"
    )


@pytest.mark.parametrize("metadata", [None, {}, {"labels": None, "managedFields": None}])
def test_nothing_is_said_of_what_is_not_known(metadata: dict[str, Any] | None) -> None:
    assert origin_of(metadata, cancelled=True) == TaskOrigin()


def test_a_retry_names_its_task_in_an_annotation_if_the_name_is_no_label() -> None:
    long = "x" * 100
    found = origin_of({"annotations": {RETRY_OF: long}, "labels": {}}, cancelled=False)
    assert found.retry_of == long


def test_an_annotation_of_any_length_leaves_room_in_the_event_of_the_end() -> None:
    annotations = dict.fromkeys((SUBMITTED_BY, CANCELLED_BY, RETRY_OF), "\x01" * 80_000)
    found = origin_of({"annotations": annotations}, cancelled=True)
    assert {len(found.submitted_by), len(found.cancelled_by), len(found.retry_of)} == {256}
