"""Which Kubernetes Events are recorded, how many, and that nothing waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import cast

import pytest

from taskqueue.controller.completions.kubernetes_events import (
    SETTLE_SECONDS,
    TASK_EVENTS_PER_MINUTE,
    TRIES,
    EventRecorder,
)
from taskqueue.controller.metrics import EVENTS_DROPPED
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.event_api import EventSpec, EventWriter, Regarding
from taskqueue.model.queue import Condition
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from tests.unit.controller.fakes import now, turn
from tests.unit.controller.virtual_time import until_time

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

    async def create(self, event: EventSpec, *, at: float) -> None:
        await self._answer()
        self.created.append((event, round(asyncio.get_running_loop().time())))

    async def repeat(self, event: EventSpec, *, count: int, at: float) -> None:
        await self._answer()
        time = round(asyncio.get_running_loop().time())
        self.repeated.append((event.name, count, time))

    async def _answer(self) -> None:
        self.tries += 1
        await self.gate.wait()
        if self.problems:
            raise self.problems.popleft()

    @property
    def events(self) -> list[tuple[str, str, str]]:
        """Type, reason and object of each Event."""
        return [
            (event.type, event.reason, f"{event.regarding.kind}/{event.regarding.name}")
            for event, _ in self.created
        ]


def task(name: str, queue: str = "q") -> Task:
    return Task(
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        generation=1,
        created=0.0,
        spec=TaskSpec(queue=queue, handler="h"),
    )


class Case:
    def __init__(self, waiting_limit: int = 1000) -> None:
        self.writer = FakeWriter()
        self.recorder = EventRecorder(
            cast(EventWriter, self.writer), clock=now, waiting_limit=waiting_limit
        )

    def ended(
        self,
        name: str,
        phase: Phase = Phase.FAILED,
        reason: str = "RetriesExhausted",
        *,
        queue: str = "q",
        namespace: str = "shop",
    ) -> None:
        status = TaskState(phase=phase, reason=reason, message="why")
        ended = replace(task(name, queue), namespace=namespace)
        self.recorder.on_task_ended(ended, status)

    def queue(self, condition: Condition, uid: str = "uid-q") -> None:
        self.recorder.on_condition(KEY, uid, condition)

    async def hold(self, condition: Condition) -> None:
        """Show a condition for long enough to be reported."""
        self.queue(condition)
        await asyncio.sleep(SETTLE_SECONDS + 1)


@asynccontextmanager
async def at_work(waiting_limit: int = 1000) -> AsyncIterator[Case]:
    case = Case(waiting_limit)
    running = asyncio.create_task(case.recorder.run())
    await turn()
    try:
        yield case
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def dropped(why: str) -> float:
    value: float = EVENTS_DROPPED.labels(why)._value.get()
    return value


async def test_failed_and_cancelled_tasks_have_events() -> None:
    async with at_work() as case:
        case.ended("a")
        case.ended("b", Phase.CANCELLED, "Cancelled")
        await turn()
        assert case.writer.events == [
            ("Warning", "RetriesExhausted", "Task/a"),
            ("Normal", "Cancelled", "Task/b"),
        ]
        event = case.writer.created[0][0]
        assert (event.regarding.uid, event.note) == ("uid-a", "why")


async def test_succeeded_task_has_no_event() -> None:
    async with at_work() as case:
        case.ended("a", Phase.SUCCEEDED, "")
        await until_time(100)
        assert case.writer.tries == 0


async def test_task_whose_status_is_refused_has_an_event_whatever_became_of_it() -> None:
    async with at_work() as case:
        for phase in (Phase.SUCCEEDED, Phase.PENDING):
            case.recorder.on_status_refused(task("t"), TaskState(phase=phase), "w" * 5000)
        await turn()
        assert case.writer.events == [("Warning", "StatusRefused", "Task/t")] * 2
        event, _ = case.writer.created[0]
        assert event.note.startswith("the Task is Succeeded, and that cannot be recorded: make")


async def test_the_rest_of_a_minute_is_summed_up_in_one() -> None:
    async with at_work() as case:
        case.queue(WELL)
        for number in range(TASK_EVENTS_PER_MINUTE + 7):
            case.ended(f"t{number}")
        case.ended("c", Phase.CANCELLED, "Cancelled")
        case.ended("other", queue="other")
        await until_time(59)
        assert len(case.writer.created) == TASK_EVENTS_PER_MINUTE + 1
        await until_time(60)
        event, at = case.writer.created[-1]
        assert (event.type, event.reason, at) == ("Warning", "MoreTasksFailed", 60)
        assert (event.regarding.kind, event.regarding.uid) == ("TaskQueue", "uid-q")
        assert event.note.startswith(
            "8 more Tasks ended within a minute: RetriesExhausted 7, Cancelled 1. List them"
        )
        await until_time(200)
        assert len(case.writer.created) == TASK_EVENTS_PER_MINUTE + 2


async def test_tasks_that_cannot_be_recorded_have_a_minute_of_their_own() -> None:
    async with at_work() as case:
        for number in range(TASK_EVENTS_PER_MINUTE + 1):
            case.ended(f"t{number}")
        pending = TaskState(phase=Phase.PENDING)
        for number in range(TASK_EVENTS_PER_MINUTE + 3):
            case.recorder.on_status_refused(task(f"r{number}"), pending, "too large")
        await turn()
        refused = [event for event in case.writer.events if event[1] == "StatusRefused"]
        assert len(refused) == TASK_EVENTS_PER_MINUTE
        await until_time(60)
        ended, sum_of_refused = (event for event, _ in case.writer.created[-2:])
        assert ended.reason == "MoreTasksFailed"
        assert (sum_of_refused.type, sum_of_refused.reason) == ("Warning", "MoreStatusesRefused")
        assert sum_of_refused.note.startswith(
            "3 more Tasks could not be recorded within a minute: StatusRefused 3. List them"
        )


async def test_another_minute_has_events_of_its_own() -> None:
    async with at_work() as case:
        for number in range(TASK_EVENTS_PER_MINUTE + 1):
            case.ended(f"t{number}", Phase.CANCELLED, "Cancelled")
        await until_time(61)
        assert case.writer.events[-1] == ("Normal", "MoreTasksCancelled", "TaskQueue/q")
        case.ended("late")
        await turn()
        assert case.writer.events[-1] == ("Warning", "RetriesExhausted", "Task/late")


async def test_many_reasons_are_named_in_part() -> None:
    async with at_work() as case:
        for number in range(TASK_EVENTS_PER_MINUTE):
            case.ended(f"t{number}")
        for number in range(8):
            case.ended(f"u{number}", reason=f"Reason{number}")
        await until_time(60)
        assert "and 3 other reasons" in case.writer.created[-1][0].note


async def test_lasting_trouble_and_its_end_have_one_event_each() -> None:
    async with at_work() as case:
        for second in range(30):
            case.queue(AWAY)
            await until_time(second)
        for second in range(30, 60):
            case.queue(WELL)
            await until_time(second)
        assert case.writer.events == [
            ("Warning", "BrokerUnavailable", "TaskQueue/q"),
            ("Normal", "Ready", "TaskQueue/q"),
        ]
        (warning, began), (_, ended) = case.writer.created
        assert (warning.note, warning.regarding.uid) == ("nobody listens", "uid-q")
        assert (began, ended) == (SETTLE_SECONDS, 29 + SETTLE_SECONDS)
        assert case.writer.repeated == []


async def test_start_and_short_break_have_no_event() -> None:
    async with at_work() as case:
        case.queue(UNKNOWN)
        case.queue(AWAY)
        await until_time(SETTLE_SECONDS - 1)
        case.queue(WELL)
        await until_time(60)
        assert case.writer.tries == 0


async def test_the_time_not_known_does_not_count() -> None:
    async with at_work() as case:
        case.queue(UNKNOWN)
        await until_time(SETTLE_SECONDS - 1)
        case.queue(AWAY)
        await until_time(SETTLE_SECONDS + 1)
        assert case.writer.tries == 0
        await until_time(2 * SETTLE_SECONDS)
        assert case.writer.tries == 1


async def test_not_to_know_is_neither_trouble_nor_its_end() -> None:
    async with at_work() as case:
        case.queue(AWAY)
        await until_time(10)
        case.queue(UNKNOWN)
        await until_time(20)
        assert len(case.writer.created) == 1
        case.queue(WELL)
        case.queue(UNKNOWN)
        await until_time(30)
        assert len(case.writer.created) == 1


async def test_trouble_with_another_reason_has_another_event() -> None:
    async with at_work() as case:
        case.queue(AWAY)
        await until_time(10)
        case.queue(DENIED)
        await until_time(20)
        assert [reason for _, reason, _ in case.writer.events] == [
            "BrokerUnavailable",
            "PermissionDenied",
        ]


async def test_trouble_that_comes_back_raises_the_count_of_its_event() -> None:
    async with at_work() as case:
        for round_ in range(3):
            case.queue(AWAY)
            await until_time(40 * round_ + 20)
            case.queue(WELL)
            await until_time(40 * round_ + 40)
        (warning, _), (normal, _) = case.writer.created
        assert [(name, count) for name, count, _ in case.writer.repeated] == [
            (warning.name, 2),
            (normal.name, 2),
            (warning.name, 3),
            (normal.name, 3),
        ]


async def test_repeats_during_a_write_are_written_with_the_next_one() -> None:
    async with at_work() as case:
        case.writer.gate.clear()
        for condition in (AWAY, WELL, AWAY, WELL, AWAY):
            await case.hold(condition)
        case.writer.gate.set()
        await until_time(60)
        (warning, _), (normal, _) = case.writer.created
        assert [(name, count) for name, count, _ in case.writer.repeated] == [
            (warning.name, 3),
            (normal.name, 2),
        ]


async def test_event_removed_for_its_age_is_created_again() -> None:
    async with at_work() as case:
        await case.hold(AWAY)
        await case.hold(WELL)
        case.writer.problems.append(ApiError(404, "NotFound", "gone"))
        await case.hold(AWAY)
        first, _, second = (event.name for event, _ in case.writer.created)
        assert first != second
        await case.hold(WELL)
        await case.hold(AWAY)
        assert [(name, count) for name, count, _ in case.writer.repeated][-1] == (second, 2)


async def test_recreated_taskqueue_has_events_of_its_own() -> None:
    async with at_work() as case:
        case.queue(AWAY)
        await until_time(10)
        case.queue(AWAY, uid="uid-new")
        await until_time(20)
        assert [event.regarding.uid for event, _ in case.writer.created] == ["uid-q", "uid-new"]


async def test_deleted_taskqueue_has_no_more_events() -> None:
    async with at_work() as case:
        case.queue(AWAY)
        case.recorder.remove_queue(KEY)
        await until_time(60)
        assert case.writer.tries == 0


async def test_what_does_not_fit_is_dropped_and_counted() -> None:
    async with at_work(waiting_limit=3) as case:
        before = dropped("full")
        case.writer.gate.clear()
        case.ended("under-way")
        await turn()
        for name in "abcde":
            case.ended(name)
        assert dropped("full") == before + 2
        case.writer.gate.set()
        await turn()
        assert [name for _, _, name in case.writer.events] == [
            "Task/under-way",
            "Task/a",
            "Task/b",
            "Task/c",
        ]


async def test_events_of_one_namespace_wait_for_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with at_work() as case:
        create = case.writer.create

        async def slowly(event: EventSpec, *, at: float) -> None:
            if event.regarding.namespace == "slow":
                await asyncio.sleep(100)
            await create(event, at=at)

        monkeypatch.setattr(case.writer, "create", slowly)
        for number in range(50):
            case.ended(f"t{number}", queue=f"q{number}", namespace="slow")
        await turn()
        case.ended("quick", namespace="quick")
        await turn()
        assert [name for _, _, name in case.writer.events] == ["Task/quick"]


async def test_events_that_are_tried_again_hold_up_their_own_namespace_only() -> None:
    async with at_work() as case:
        case.writer.problems.append(ApiError(500, "", "later"))
        case.ended("slow", namespace="slow")
        await turn()
        case.ended("quick", namespace="quick")
        await turn()
        assert [name for _, _, name in case.writer.events] == ["Task/quick"]
        await asyncio.sleep(10)
        assert [name for _, _, name in case.writer.events] == ["Task/quick", "Task/slow"]


async def test_a_flood_of_events_leaves_the_others_their_share() -> None:
    async with at_work(waiting_limit=10) as case:
        case.writer.gate.clear()
        for number in range(100):
            case.ended(f"a{number}", queue=f"q{number}", namespace="a")
        for number in range(5):
            case.ended(f"b{number}", queue=f"q{number}", namespace="b")
        case.writer.gate.set()
        await turn()
        names = {name for _, _, name in case.writer.events}
        assert {f"Task/b{number}" for number in range(5)} <= names
        assert len(names) == 15


async def test_dropped_event_is_written_when_its_trouble_returns() -> None:
    async with at_work(waiting_limit=0) as case:
        await case.hold(AWAY)
        await case.hold(WELL)
        case.recorder._waiting_limit = 10
        await case.hold(AWAY)
        assert [reason for _, reason, _ in case.writer.events] == ["BrokerUnavailable"]


async def test_what_may_succeed_later_is_tried_a_few_times() -> None:
    async with at_work() as case:
        before = dropped("refused")
        case.writer.problems.extend(
            [ApiError(500, "", "no"), ApiError(429, "", "no", retry_after=20)]
        )
        case.ended("a")
        await until_time(20)
        assert case.writer.events == []
        await until_time(22)
        assert len(case.writer.events) == 1
        case.writer.problems.extend([ApiError(0, "", "no")] * TRIES)
        case.ended("b")
        case.ended("c")
        await until_time(60)
        assert [name for _, _, name in case.writer.events] == ["Task/a", "Task/c"]
        assert dropped("refused") == before + 1


async def test_a_missing_permission_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with at_work() as case:
        case.writer.problems.extend([ApiError(403, "Forbidden", "cannot create events")] * 3)
        for name in "abc":
            case.ended(name)
        await until_time(10)
        assert case.writer.tries == 3
        assert [record.message for record in caplog.records] == ["event.rejected"]
        case.ended("d")
        await turn()
        case.writer.problems.append(ApiError(403, "Forbidden", "cannot create events"))
        case.ended("e")
        await turn()
        assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "problem",
    [
        ApiError(404, "NotFound", "namespaces shop not found"),
        ApiError(403, "Forbidden", "unable to create new content: it is being terminated"),
    ],
)
async def test_namespace_being_deleted_is_not_logged(
    problem: ApiError, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work() as case:
        case.writer.problems.append(problem)
        case.ended("a")
        await until_time(10)
        assert (case.writer.tries, caplog.records) == (1, [])


async def test_recorder_keeps_writing_after_a_bug_in_one_write() -> None:
    async with at_work() as case:
        case.writer.problems.append(RuntimeError("a bug"))
        for condition in (AWAY, WELL, AWAY):
            await case.hold(condition)
        assert [reason for _, reason, _ in case.writer.events] == ["Ready", "BrokerUnavailable"]


async def test_skipped_runs_of_a_schedule_have_one_event_for_each_reason() -> None:
    schedule = Regarding(kind="TaskSchedule", namespace="shop", name="nightly", uid="u")
    async with at_work() as case:
        for reason in ("Missed", "Missed", "Excluded", "Missed"):
            case.recorder.on_run_skipped(schedule, reason, "the run of noon")
            await turn()
        assert [event[1:] for event in case.writer.events] == [
            ("Missed", "TaskSchedule/nightly"),
            ("Excluded", "TaskSchedule/nightly"),
        ]
        assert [count for _, count, _ in case.writer.repeated] == [2, 3]
        case.recorder.remove_schedule("u")
        case.recorder.on_run_skipped(schedule, "Missed", "the run of midnight")
        await turn()
        assert len(case.writer.created) == 3
