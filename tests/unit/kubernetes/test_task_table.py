"""Tasks as rows of a Table, and what is written of those that can only be read so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import read_outline, read_task, status_patch
from taskqueue.kubernetes.task_table import outlines
from taskqueue.model.task import Phase
from taskqueue.timestamps import from_rfc3339
from tests.unit.controller.fakes import raw_task
from tests.unit.kubernetes.fake_api import as_table

COMPLETED = "2026-01-02T03:04:05.678Z"
STATUS = {
    "observedGeneration": 1,
    "phase": "Failed",
    "reason": "Boom",
    "message": "it broke",
    "attempts": 2,
    "epoch": 3,
    "completionTime": COMPLETED,
}


def shown(*raws: dict[str, Any]) -> list[dict[str, Any]]:
    return list(outlines(as_table(raws)))


def test_an_outline_has_what_is_needed_of_a_finished_task() -> None:
    whole = raw_task("t", status=STATUS, ttlSecondsAfterFinished=7, payload={"a": 1})
    (outline,) = shown(whole)
    task, read = read_task(whole), read_outline(outline)
    assert read.is_outline
    assert (read.uid, read.path, read.created) == (task.uid, task.path, task.created)
    assert (read.spec.queue, read.spec.handler) == ("q", "resize")
    assert read.spec.overrides.ttl_seconds == 7
    assert (read.status.phase, read.status.reason, read.status.attempts) == (
        Phase.FAILED,
        "Boom",
        2,
    )
    assert read.status.completion_time == from_rfc3339(COMPLETED)
    assert "payload" not in outline["spec"]


def test_an_outline_of_a_task_without_a_status_of_its_own() -> None:
    first, second = shown(raw_task("a"), raw_task("b"))
    assert [outline["metadata"]["name"] for outline in (first, second)] == ["a", "b"]
    assert read_outline(first).status.phase is Phase.PENDING
    assert read_outline(first).status.completion_time is None


@pytest.mark.parametrize("table", [{"rows": []}, {"columnDefinitions": [], "rows": None}])
def test_a_table_without_the_columns_is_an_error(table: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="apply the CRDs of the operator's version"):
        list(outlines(table))


def test_the_end_of_an_outline_leaves_the_rest_of_its_status_as_it_is() -> None:
    """What is not known of it, such as its epoch, must not be set back: the API server refuses."""
    task = read_outline(shown(raw_task("t", status=STATUS))[0])
    ended = replace(task.status, phase=Phase.FAILED, reason="Invalid", completion_time=9.0)
    test, *changes = orjson.loads(status_patch(task, ended, now=9.0))
    assert test == {"op": "test", "path": "/metadata/uid", "value": "uid-t"}
    assert {change["op"] for change in changes} == {"add"}
    written = {change["path"]: change["value"] for change in changes}
    assert written.keys() == {
        *("/status/phase", "/status/reason", "/status/message", "/status/attempts"),
        *("/status/observedGeneration", "/status/completionTime", "/status/conditions"),
    }
    assert (written["/status/phase"], written["/status/attempts"]) == ("Failed", 2)
    assert [one["type"] for one in written["/status/conditions"]] == [
        "Finished",
        "Failed",
        "Stalled",
    ]
