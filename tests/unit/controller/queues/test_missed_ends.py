"""What is published of Tasks that were deleted while nobody led."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.queues.missed_ends import publish_missed_ends
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.kubernetes.watch_scope import WatchScope
from taskqueue.model.queue import ArchiveConfig, QueueConfig, QueueKey
from taskqueue.model.task import Task, TaskState
from taskqueue.model.webhook import SecretKey, WebhookConfig
from tests.unit.controller.fakes import raw_task

PLAIN = QueueConfig(namespace="shop", name="q", uid="u", generation=1)
ARCHIVED = replace(PLAIN, archive=ArchiveConfig(secret="archive"))
NOTIFIED = replace(
    PLAIN, webhooks=(WebhookConfig(name="a", url="x", signing_secret=SecretKey("s", "k")),)
)
UNTIL = 200


class FakeApi:
    """Lists at `UNTIL`, and watches what the test gives, one list of events a watch."""

    def __init__(self, *watches: list[dict[str, Any]] | ApiError) -> None:
        self.watches = iter(watches)
        self.paths: list[str] = []
        self.versions: list[str] = []

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": str(UNTIL)}, "items": []}

    async def watch(
        self, path: str, *, timeout_seconds: int, resourceVersion: str, **_: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.paths.append(path)
        self.versions.append(resourceVersion)
        events = next(self.watches)
        if isinstance(events, ApiError):
            raise events
        for event in events:
            yield event


class Published:
    def __init__(self) -> None:
        self.ends: list[tuple[str, str, str]] = []

    def publish(self, task: Task, status: TaskState, metadata: Any, *_: Any, **more: Any) -> None:
        assert metadata["uid"] == task.uid
        assert not more["reported"]
        assert status.completion_time is not None
        self.ends.append((task.name, status.phase.value, status.reason))


def event(name: str, version: int, *, kind: str = "DELETED", **more: Any) -> dict[str, Any]:
    raw = raw_task(name, **more)
    raw["metadata"]["resourceVersion"] = str(version)
    return {"type": kind, "object": raw}


def bookmark(version: int) -> dict[str, Any]:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}


async def missed(
    api: FakeApi,
    since: str = "100",
    *,
    config: QueueConfig | None = ARCHIVED,
    paths: Sequence[str] = (TASKS_PATH,),
) -> list[Any]:
    published = Published()

    def config_of(key: QueueKey) -> QueueConfig | None:
        assert key == ("shop", "q")
        return config

    await publish_missed_ends(
        cast(ApiClient, api),
        since,
        paths=paths,
        tracked={"uid-tracked"},
        config_of=config_of,
        publisher_of=lambda key: None,
        ends=cast(TaskEnds, published),
        clock=lambda: 5.0,
    )
    return published.ends


FINISHED = {
    "phase": "Failed",
    "reason": "Boom",
    "observedGeneration": 1,
    "completionTime": "2026-01-01T00:00:00Z",
}


def deletions() -> Iterator[dict[str, Any]]:
    yield event("waits", 110)
    yield event("changed", 120, kind="MODIFIED")
    yield event("tracked", 130)
    yield event("finished", 140, status=FINISHED)
    bad = event("unreadable", 150)
    bad["object"]["spec"]["priority"] = "high"
    yield bad
    worse = event("refused", 155, status={"phase": "Ended", "observedGeneration": 1})
    worse["object"]["spec"]["priority"] = "high"
    yield worse
    yield event("last", 160)


async def test_each_deleted_task_has_its_end_and_no_other_has() -> None:
    api = FakeApi([*deletions(), bookmark(UNTIL)])
    assert await missed(api) == [
        ("waits", "Cancelled", "Deleted"),
        ("finished", "Failed", "Boom"),
        ("unreadable", "Cancelled", "Deleted"),
        ("last", "Cancelled", "Deleted"),
    ]
    assert api.versions == ["100"]


async def test_a_webhook_is_sent_what_ended_without_a_worker_as_well() -> None:
    changes = [
        event("failed", 141, kind="MODIFIED", status=FINISHED),
        event("done", 142, kind="MODIFIED", status=FINISHED | {"phase": "Succeeded"}),
        event("running", 143, kind="MODIFIED", status={"phase": "Running"}),
        event("new", 144, kind="ADDED"),
        bookmark(UNTIL),
    ]
    assert await missed(FakeApi(changes)) == []
    assert await missed(FakeApi(changes), config=NOTIFIED) == [("failed", "Failed", "Boom")]


async def test_a_watch_that_ends_before_is_gone_on_with() -> None:
    api = FakeApi([event("one", 110)], [event("two", 120), event("three", UNTIL)])
    assert [name for name, *_ in await missed(api)] == ["one", "two", "three"]
    assert api.versions == ["100", "110"]


async def test_each_namespace_that_is_served_is_watched_from_there() -> None:
    api = FakeApi([event("one", 110), bookmark(UNTIL)], [event("two", 120), bookmark(UNTIL)])
    paths = WatchScope(("shop", "depot")).paths(TASKS_PATH)
    assert [name for name, *_ in await missed(api, paths=paths)] == ["one", "two"]
    assert (api.paths, api.versions) == (list(paths), ["100", "100"])


async def test_nothing_after_that_is_read() -> None:
    api = FakeApi([event("one", UNTIL), event("two", UNTIL + 1)])
    assert [name for name, *_ in await missed(api)] == ["one"]


async def test_a_quiet_watch_is_the_end() -> None:
    api = FakeApi([bookmark(150)])
    assert await missed(api) == []


@pytest.mark.parametrize("since", ["", "x", str(UNTIL)])
async def test_nothing_is_read_where_nothing_can_be_missed(since: str) -> None:
    api = FakeApi()
    assert await missed(api, since) == []
    assert api.versions == []


async def test_tasks_of_queues_without_an_archive_are_not_published() -> None:
    assert await missed(FakeApi([*deletions(), bookmark(UNTIL)]), config=None) == []


@pytest.mark.parametrize("as_event", [True, False])
async def test_what_is_forgotten_by_the_api_server_is_said(
    as_event: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    expired = ApiError(410, "Expired", "too old")
    assert await missed(FakeApi([answer] if as_event else expired)) == []
    assert "ends.deletions_unknown" in caplog.text


async def test_another_error_is_for_the_caller() -> None:
    with pytest.raises(ApiError):
        await missed(FakeApi(ApiError(503, "No", "no")))
