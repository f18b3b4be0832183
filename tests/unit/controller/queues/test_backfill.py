"""Which finished Tasks are published for a sink, and which may be deleted; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

import orjson
import pytest

from taskqueue.archive.errors import ArchiveError, ArchiveTrouble
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.queues.backfill import Backfill
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import ArchiveConfig, QueueConfig
from taskqueue.model.task import Task, TaskState
from tests.unit.controller.fakes import raw_task
from tests.unit.kubernetes.fake_api import as_table

pytestmark = pytest.mark.looptime

KEY = ("shop", "q")
COMPLETED = 1_767_225_600.0  # 2026-01-01


class FakeApi:
    """Lists finished Tasks, and has them."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.lists = 0
        self.gets: list[str] = []
        self.problem: ApiError | None = None

    def finish(self, *names: str) -> None:
        for name in names:
            status = {
                "phase": "Succeeded",
                "observedGeneration": 1,
                "completionTime": "2026-01-01T00:00:00Z",
            }
            raw = raw_task(name, status=status)
            raw["metadata"]["labels"] = {"name": name}
            self.objects[name] = raw

    async def send(self, method: str, path: str, *, params: Mapping[str, str], **_: Any) -> bytes:
        assert (method, path) == ("GET", "/apis/taskqueue.dev/v1alpha1/namespaces/shop/tasks")
        assert params["fieldSelector"].startswith("spec.queue=q,")
        self.lists += 1
        if self.problem is not None:
            raise self.problem
        return orjson.dumps(as_table(list(self.objects.values())))

    async def get(self, path: str) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        self.gets.append(name)
        if name not in self.objects:
            raise ApiError(404, "NotFound", "gone")
        return self.objects[name]


class FakeArchive:
    def __init__(self) -> None:
        self.rows: set[str] = set()
        self.trouble: ArchiveTrouble | None = None

    async def missing(self, uids: Iterable[str]) -> set[str]:
        if self.trouble is not None:
            raise ArchiveError(self.trouble, "there", "so")
        return set(uids) - self.rows


class FakeDispatcher:
    key = KEY
    publisher = None
    config = QueueConfig(
        namespace="shop", name="q", uid="u", generation=1, archive=ArchiveConfig(secret="archive")
    )


class Case:
    def __init__(self) -> None:
        self.api, self.archive = FakeApi(), FakeArchive()
        self.published: list[str] = []
        self.recorded: list[str] = []
        #: Whether what is published reaches the archive.
        self.arrives = True
        self.now = COMPLETED + 60
        self.backfill = Backfill(
            dispatcher=cast(Dispatcher, FakeDispatcher()),
            client=cast(ApiClient, self.api),
            ends=cast(TaskEnds, self),
            on_recorded=self._on_recorded,
            clock=lambda: self.now,
        )
        self.backfill.waiting = 0
        self.running: asyncio.Task[None] | None = None

    def publish(
        self,
        task: Task,
        status: TaskState,
        metadata: Mapping[str, Any],
        archive: ArchiveConfig,
        **more: Any,
    ) -> None:
        assert archive is FakeDispatcher.config.archive
        assert status.phase.terminal
        assert metadata["labels"] == {"name": task.name}
        assert not more["reported"]
        self.published.append(task.name)
        if self.arrives:
            self.archive.rows.add(task.uid)

    def _on_recorded(self, tasks: Iterable[FinishedTask]) -> None:
        self.recorded += [task.name for task in tasks]

    def start(self, retention_seconds: int | None = None) -> None:
        self.running = asyncio.create_task(self.backfill.run(self.archive, retention_seconds))


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    case = Case()
    yield case
    if case.running is not None:
        case.running.cancel()
        await asyncio.gather(case.running, return_exceptions=True)


async def test_what_the_archive_has_may_be_deleted_and_the_rest_is_published_first(
    case: Case,
) -> None:
    case.api.finish("old", "new")
    case.archive.rows = {"uid-old"}
    case.start()
    await asyncio.sleep(1)
    assert (case.published, case.recorded) == (["new"], ["old"])
    await asyncio.sleep(60)
    assert case.published == ["new"]
    assert case.recorded == ["old", "old", "new"]


async def test_an_object_that_cannot_be_read_stops_no_other(case: Case) -> None:
    case.api.finish("bad", "good")
    case.api.objects["bad"]["spec"]["priority"] = "high"
    case.api.objects["bad"]["status"]["phase"] = "Ended"
    case.start()
    await asyncio.sleep(1)
    assert case.published == ["good"]
    assert case.running is not None
    assert not case.running.done()


async def test_it_looks_until_nothing_is_missing_and_then_no_more(case: Case) -> None:
    case.api.finish("t")
    case.arrives = False
    case.start()
    await asyncio.sleep(100)
    assert 3 <= len(case.published) <= 10
    assert case.recorded == []
    case.arrives = True
    await asyncio.sleep(400)
    lists = case.api.lists
    assert case.recorded == ["t"]
    await asyncio.sleep(1000)
    assert case.api.lists == lists
    case.backfill.request()
    await asyncio.sleep(10)
    assert case.api.lists == lists + 1


async def test_it_waits_until_the_outbox_is_nearly_empty(case: Case) -> None:
    case.api.finish("t")
    for case.backfill.waiting in (None, 5000):
        if case.running is None:
            case.start()
        await asyncio.sleep(30)
        assert case.api.lists == 0
    case.backfill.waiting = 3
    await asyncio.sleep(6)
    assert case.published == ["t"]


async def test_it_is_behind_until_a_look_has_begun(case: Case) -> None:
    case.backfill.waiting = None
    case.backfill.request(behind=True)
    case.start()
    await asyncio.sleep(30)
    assert case.backfill.is_behind
    case.backfill.waiting = 0
    await asyncio.sleep(6)
    assert not case.backfill.is_behind


async def test_an_archive_or_api_server_that_is_away_leaves_it_behind(case: Case) -> None:
    case.api.finish("t")
    case.api.problem = ApiError(503, "No", "no")
    case.start()
    await asyncio.sleep(1)
    assert case.backfill.is_behind
    case.api.problem, case.archive.trouble = None, ArchiveTrouble.UNAVAILABLE
    assert case.running is not None
    with pytest.raises(ArchiveError):
        await case.running
    assert case.backfill.is_behind
    case.archive.trouble = None
    case.start()
    await asyncio.sleep(30)
    assert case.recorded == ["t"]
    assert not case.backfill.is_behind


async def test_what_is_older_than_the_retention_may_be_deleted_without_a_row(case: Case) -> None:
    case.api.finish("t")
    case.start(59)
    await asyncio.sleep(1)
    assert (case.published, case.recorded) == ([], ["t"])


async def test_a_task_that_is_gone_or_another_by_now_is_not_published(case: Case) -> None:
    case.api.finish("gone", "another")
    get = case.api.get

    async def change(path: str) -> dict[str, Any]:
        case.api.objects.pop("gone", None)
        raw = await get(path)
        return {**raw, "metadata": {**raw["metadata"], "uid": "uid-other"}}

    case.api.get = change  # type: ignore[method-assign]
    case.start()
    await asyncio.sleep(1)
    assert case.published == []


async def test_a_task_that_cannot_be_read_has_a_row_of_what_can(case: Case) -> None:
    case.api.finish("t")
    case.api.objects["t"]["spec"]["priority"] = "high"
    case.start()
    await asyncio.sleep(1)
    assert case.published == ["t"]
