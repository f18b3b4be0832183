"""What is told as Kubernetes Events, how much of it, and that nothing ever waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from taskqueue.controller.completions.event_recorder import (
    SERIES_SECONDS,
    SETTLE_SECONDS,
    TASK_EVENTS_PER_MINUTE,
    TRIES,
    EventRecorder,
)
from taskqueue.controller.metrics import NOTICES_DROPPED
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.events import EventSpec, EventWriter
from taskqueue.model.queue import Condition
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from tests.unit.controller.fakes import now, turn, until_time

pytestmark = pytest.mark.looptime

KEY = ("shop", "q")
WELL = Condition("Ready", True, "Ready", "Tasks are published and run")
AWAY = Condition("Ready", False, "BrokerUnavailable", "nobody listens")
DENIED = Condition("Ready", False, "PermissionDenied", "not for you")
UNKNOWN = Condition("Ready", None, "Connecting", "")


class FakeWriter:
    """Keeps what is written, and when."""

    def __init__(self) -> None:
        self.created: list[tuple[EventSpec, float]] = []
        self.repeated: list[tuple[str, int, float]] = []
        self.problems: deque[Exception] = deque()
        self.tries = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def create(self, notice: EventSpec, *, at: float) -> None:
        await self._answer()
        self.created.append((notice, round(asyncio.get_running_loop().time())))

    async def repeat(self, notice: EventSpec, *, count: int, at: float) -> None:
        await self._answer()
        time = round(asyncio.get_running_loop().time())
        self.repeated.append((notice.name, count, time))

    async def _answer(self) -> None:
        self.tries += 1
        await self.gate.wait()
        if self.problems:
            raise self.problems.popleft()

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """Type, reason and object of each Event."""
        return [
            (notice.type, notice.reason, f"{notice.regarding.kind}/{notice.regarding.name}")
            for notice, _ in self.created
        ]


class Stage:
    def __init__(self, waiting_limit: int = 1000) -> None:
        self.writer = FakeWriter()
        self.notices = EventRecorder(
            cast(EventWriter, self.writer), clock=now, waiting_limit=waiting_limit
        )

    def ended(
        self,
        name: str,
        phase: Phase = Phase.FAILED,
        reason: str = "RetriesExhausted",
        *,
        queue: str = "q",
    ) -> None:
        task = Task(
            namespace="shop",
            name=name,
            uid=f"uid-{name}",
            generation=1,
            created=0.0,
            spec=TaskSpec(queue=queue, handler="h"),
        )
        self.notices.on_task_ended(task, TaskState(phase=phase, reason=reason, message="why"))

    def queue(self, condition: Condition, uid: str = "uid-q") -> None:
        self.notices.queue(KEY, uid, condition)


@asynccontextmanager
async def at_work(waiting_limit: int = 1000) -> AsyncIterator[Stage]:
    stage = Stage(waiting_limit)
    running = asyncio.create_task(stage.notices.run())
    await turn()
    try:
        yield stage
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def dropped(why: str) -> float:
    value: float = NOTICES_DROPPED.labels(why)._value.get()
    return value


async def test_a_failed_and_a_cancelled_task_are_told() -> None:
    async with at_work() as stage:
        stage.ended("a")
        stage.ended("b", Phase.CANCELLED, "Cancelled")
        await turn()
        assert stage.writer.told == [
            ("Warning", "RetriesExhausted", "Task/a"),
            ("Normal", "Cancelled", "Task/b"),
        ]
        notice = stage.writer.created[0][0]
        assert (notice.regarding.uid, notice.note) == ("uid-a", "why")


async def test_success_is_not_told() -> None:
    async with at_work() as stage:
        stage.ended("a", Phase.SUCCEEDED, "")
        await until_time(100)
        assert stage.writer.tries == 0


async def test_the_rest_of_a_minute_is_summed_up_in_one() -> None:
    async with at_work() as stage:
        stage.queue(WELL)
        for number in range(TASK_EVENTS_PER_MINUTE + 7):
            stage.ended(f"t{number}")
        stage.ended("c", Phase.CANCELLED, "Cancelled")
        stage.ended("other", queue="other")
        await until_time(59)
        assert len(stage.writer.created) == TASK_EVENTS_PER_MINUTE + 1
        await until_time(60)
        notice, at = stage.writer.created[-1]
        assert (notice.type, notice.reason, at) == ("Warning", "MoreTasksFailed", 60)
        assert (notice.regarding.kind, notice.regarding.uid) == ("TaskQueue", "uid-q")
        assert notice.note.startswith(
            "8 more Tasks ended within a minute: RetriesExhausted 7, Cancelled 1. List them"
        )
        await until_time(200)
        assert len(stage.writer.created) == TASK_EVENTS_PER_MINUTE + 2


async def test_another_minute_has_events_of_its_own() -> None:
    async with at_work() as stage:
        for number in range(TASK_EVENTS_PER_MINUTE + 1):
            stage.ended(f"t{number}", Phase.CANCELLED, "Cancelled")
        await until_time(61)
        assert stage.writer.told[-1] == ("Normal", "MoreTasksCancelled", "TaskQueue/q")
        stage.ended("late")
        await turn()
        assert stage.writer.told[-1] == ("Warning", "RetriesExhausted", "Task/late")


async def test_many_reasons_are_named_in_part() -> None:
    async with at_work() as stage:
        for number in range(TASK_EVENTS_PER_MINUTE):
            stage.ended(f"t{number}")
        for number in range(8):
            stage.ended(f"u{number}", reason=f"Reason{number}")
        await until_time(60)
        assert "and 3 other reasons" in stage.writer.created[-1][0].note


async def test_lasting_trouble_is_told_once_and_so_is_its_end() -> None:
    async with at_work() as stage:
        for second in range(30):
            stage.queue(AWAY)
            await until_time(second)
        for second in range(30, 60):
            stage.queue(WELL)
            await until_time(second)
        assert stage.writer.told == [
            ("Warning", "BrokerUnavailable", "TaskQueue/q"),
            ("Normal", "Ready", "TaskQueue/q"),
        ]
        (warning, began), (_, ended) = stage.writer.created
        assert (warning.note, warning.regarding.uid) == ("nobody listens", "uid-q")
        assert (began, ended) == (SETTLE_SECONDS, 29 + SETTLE_SECONDS)
        assert stage.writer.repeated == []


async def test_a_start_and_a_short_break_are_not_told() -> None:
    async with at_work() as stage:
        stage.queue(UNKNOWN)
        stage.queue(AWAY)
        await until_time(SETTLE_SECONDS - 1)
        stage.queue(WELL)
        await until_time(60)
        assert stage.writer.tries == 0


async def test_the_time_not_known_does_not_count() -> None:
    async with at_work() as stage:
        stage.queue(UNKNOWN)
        await until_time(SETTLE_SECONDS - 1)
        stage.queue(AWAY)
        await until_time(SETTLE_SECONDS + 1)
        assert stage.writer.tries == 0
        await until_time(2 * SETTLE_SECONDS)
        assert stage.writer.tries == 1


async def test_not_to_know_is_neither_trouble_nor_its_end() -> None:
    async with at_work() as stage:
        stage.queue(AWAY)
        await until_time(10)
        stage.queue(UNKNOWN)
        await until_time(20)
        assert len(stage.writer.created) == 1
        stage.queue(WELL)
        stage.queue(UNKNOWN)
        await until_time(30)
        assert len(stage.writer.created) == 1


async def test_trouble_that_changes_its_reason_is_told_again() -> None:
    async with at_work() as stage:
        stage.queue(AWAY)
        await until_time(10)
        stage.queue(DENIED)
        await until_time(20)
        assert [reason for _, reason, _ in stage.writer.told] == [
            "BrokerUnavailable",
            "PermissionDenied",
        ]


async def test_trouble_that_comes_back_raises_the_count_of_its_event() -> None:
    async with at_work() as stage:
        for round_ in range(3):
            stage.queue(AWAY)
            await until_time(40 * round_ + 20)
            stage.queue(WELL)
            await until_time(40 * round_ + 40)
        (warning, _), (normal, _) = stage.writer.created
        assert [(name, count) for name, count, _ in stage.writer.repeated] == [
            (warning.name, 2),
            (normal.name, 2),
            (warning.name, 3),
            (normal.name, 3),
        ]


async def test_what_happens_often_is_written_seldom_and_not_lost() -> None:
    async with at_work() as stage:
        for second in range(25):
            stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
            await until_time(second + 1)
        await until_time(60)
        assert len(stage.writer.created) == 1
        assert [(count, at) for _, count, at in stage.writer.repeated] == [
            (10, SERIES_SECONDS),
            (20, 2 * SERIES_SECONDS),
            (25, 3 * SERIES_SECONDS),
        ]


async def test_what_happens_while_it_is_written_is_not_lost() -> None:
    async with at_work() as stage:
        stage.writer.gate.clear()
        for _ in range(3):
            stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
            await turn()
        stage.writer.gate.set()
        await until_time(60)
        assert len(stage.writer.created) == 1
        assert [count for _, count, _ in stage.writer.repeated] == [3]


async def test_an_event_removed_for_its_age_is_made_anew() -> None:
    async with at_work() as stage:
        stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
        await until_time(20)
        stage.writer.problems.append(ApiError(404, "NotFound", "gone"))
        stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
        await until_time(40)
        first, second = (notice.name for notice, _ in stage.writer.created)
        assert first != second
        stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
        await until_time(60)
        assert stage.writer.repeated == [(second, 2, 40)]


async def test_a_taskqueue_made_anew_has_events_of_its_own() -> None:
    async with at_work() as stage:
        stage.queue(AWAY)
        await until_time(10)
        stage.queue(AWAY, uid="uid-new")
        await until_time(20)
        assert [notice.regarding.uid for notice, _ in stage.writer.created] == ["uid-q", "uid-new"]


async def test_nothing_more_is_told_of_a_queue_that_is_gone() -> None:
    async with at_work() as stage:
        stage.queue(AWAY)
        stage.notices.forget(KEY)
        await until_time(60)
        assert stage.writer.tries == 0


async def test_what_does_not_fit_is_dropped_and_counted() -> None:
    async with at_work(waiting_limit=3) as stage:
        before = dropped("full")
        stage.writer.gate.clear()
        stage.ended("under-way")
        await turn()
        for name in "abcde":
            stage.ended(name)
        assert dropped("full") == before + 2
        stage.writer.gate.set()
        await turn()
        assert [name for _, _, name in stage.writer.told] == [
            "Task/under-way",
            "Task/a",
            "Task/b",
            "Task/c",
        ]


async def test_trouble_dropped_is_told_when_it_comes_again() -> None:
    async with at_work(waiting_limit=0) as stage:
        stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
        stage.notices._waiting_limit = 10
        stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
        await until_time(30)
        assert len(stage.writer.created) == 1


async def test_what_may_succeed_later_is_tried_a_few_times() -> None:
    async with at_work() as stage:
        before = dropped("refused")
        stage.writer.problems.extend(
            [ApiError(500, "", "no"), ApiError(429, "", "no", retry_after=20)]
        )
        stage.ended("a")
        await until_time(20)
        assert stage.writer.told == []
        await until_time(22)
        assert len(stage.writer.told) == 1
        stage.writer.problems.extend([ApiError(0, "", "no")] * TRIES)
        stage.ended("b")
        stage.ended("c")
        await until_time(60)
        assert [name for _, _, name in stage.writer.told] == ["Task/a", "Task/c"]
        assert dropped("refused") == before + 1


async def test_a_missing_permission_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with at_work() as stage:
        stage.writer.problems.extend([ApiError(403, "Forbidden", "cannot create events")] * 3)
        for name in "abc":
            stage.ended(name)
        await until_time(10)
        assert stage.writer.tries == 3
        assert [record.message for record in caplog.records] == ["notice.refused"]
        stage.ended("d")
        await turn()
        stage.writer.problems.append(ApiError(403, "Forbidden", "cannot create events"))
        stage.ended("e")
        await turn()
        assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "problem",
    [
        ApiError(404, "NotFound", "namespaces shop not found"),
        ApiError(403, "Forbidden", "unable to create new content: it is being terminated"),
    ],
)
async def test_a_namespace_on_its_way_out_is_no_news(
    problem: ApiError, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work() as stage:
        stage.writer.problems.append(problem)
        stage.ended("a")
        await until_time(10)
        assert (stage.writer.tries, caplog.records) == (1, [])


async def test_not_even_a_bug_ends_the_telling() -> None:
    async with at_work() as stage:
        stage.writer.problems.append(RuntimeError("a bug"))
        for _ in range(2):
            stage.notices.warn(KEY, "uid-q", reason="QueueLost", note="declared again")
            await until_time(30)
        stage.ended("a")
        await turn()
        assert [name for _, _, name in stage.writer.told] == ["TaskQueue/q", "Task/a"]
