"""Events within the limits of the API server, and its responses."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.event_api import (
    NORMAL,
    NOTE_BYTES,
    WARNING,
    EventSpec,
    EventWriter,
    Regarding,
    event_body,
    event_name,
)

AT = 1_700_000_000.25
TASK = Regarding(kind="Task", namespace="shop", name="resize-1", uid="0b1c")
NOTICE = EventSpec(
    regarding=TASK,
    type=WARNING,
    reason="RetriesExhausted",
    action="EndTask",
    note="attempt 3 of 3: Boom",
    name="resize-1.1",
)


class FakeClient:
    def __init__(self, *problems: ApiError) -> None:
        self.problems = deque(problems)
        self.sent: list[tuple[str, str, Any]] = []

    async def send(self, method: str, path: str, *, body: Any) -> bytes:
        self.sent.append((method, path, body))
        if self.problems:
            raise self.problems.popleft()
        return b"{}"

    async def merge(self, path: str, body: Any) -> None:
        await self.send("MERGE", path, body=body)


def writer(client: FakeClient) -> EventWriter:
    return EventWriter(cast(ApiClient, client), instance="operator-0")


def body(notice: EventSpec = NOTICE, *, instance: str = "operator-0") -> dict[str, Any]:
    return event_body(notice, at=AT, instance=instance)


def test_event_body_has_every_required_field() -> None:
    assert body() == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "resize-1.1", "namespace": "shop"},
        "eventTime": "2023-11-14T22:13:20.250000Z",
        "reportingController": "taskqueue.dev/operator",
        "reportingInstance": "operator-0",
        "type": "Warning",
        "reason": "RetriesExhausted",
        "action": "EndTask",
        "note": "attempt 3 of 3: Boom",
        "regarding": {
            "apiVersion": "taskqueue.dev/v1alpha1",
            "kind": "Task",
            "namespace": "shop",
            "name": "resize-1",
            "uid": "0b1c",
        },
    }


def test_event_body_omits_an_unknown_uid() -> None:
    assert "uid" not in body(replace(NOTICE, regarding=replace(TASK, uid="")))["regarding"]


@pytest.mark.parametrize("note", ["é" * NOTE_BYTES, "a" + "漢" * NOTE_BYTES])
def test_event_note_is_truncated_by_bytes(note: str) -> None:
    cut = body(replace(NOTICE, note=note))["note"]
    assert NOTE_BYTES - 4 < len(cut.encode()) <= NOTE_BYTES
    assert cut.endswith("…")
    assert note.startswith(cut[:-1])
    whole = "é" * (NOTE_BYTES // 2)
    assert body(replace(NOTICE, note=whole))["note"] == whole


def test_event_reason_and_instance_keep_their_limits() -> None:
    assert body(replace(NOTICE, reason="shop.Broken!"))["reason"] == "Unknown"
    assert len(body(replace(NOTICE, reason="R" * 500))["reason"]) == 128
    assert len(body(instance="i" * 500)["reportingInstance"]) == 128


def test_event_names_are_unique_and_within_the_limit() -> None:
    assert event_name(TASK) != event_name(TASK)
    assert event_name(TASK).startswith("resize-1.")
    long = event_name(replace(TASK, name="a" * 235 + "." + "b" * 17))
    assert len(long) <= 253
    assert ".." not in long


async def test_create_uses_the_namespace_of_the_object() -> None:
    client = FakeClient()
    await writer(client).create(replace(NOTICE, type=NORMAL), at=AT)
    ((method, path, sent),) = client.sent
    assert (method, path) == ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events")
    assert sent["type"] == "Normal"


async def test_create_accepts_an_existing_event_of_the_name() -> None:
    await writer(FakeClient(ApiError(409, "AlreadyExists", "there"))).create(NOTICE, at=AT)


async def test_create_raises_any_other_refusal() -> None:
    with pytest.raises(ApiError, match="no"):
        await writer(FakeClient(ApiError(403, "Forbidden", "no"))).create(NOTICE, at=AT)


async def test_repeat_patches_the_series_only() -> None:
    client = FakeClient()
    await writer(client).repeat(NOTICE, count=7, at=AT)
    assert client.sent == [
        (
            "MERGE",
            "/apis/events.k8s.io/v1/namespaces/shop/events/resize-1.1",
            {"series": {"count": 7, "lastObservedTime": "2023-11-14T22:13:20.250000Z"}},
        )
    ]
