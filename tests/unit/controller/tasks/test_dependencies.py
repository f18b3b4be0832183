"""Tasks that wait for others: what the feed shows, what is looked up, and what becomes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, Engine, now, raw_task, turn

pytestmark = pytest.mark.looptime

#: How often what does not exist is looked for again.
AGAIN = 15.0


def running() -> Engine:
    engine = Engine()
    engine._spawn(engine.tasks.dependencies.run(), "dependencies")
    engine.open()
    return engine


def stored(engine: Engine, name: str, phase: str, *, reason: str = "", at: float = 0.0) -> None:
    """Have the API server hold a Task the feed does not show."""
    status = {"phase": phase, "reason": reason, "observedGeneration": 1}
    if phase in ("Succeeded", "Failed", "Cancelled"):
        status["completionTime"] = to_rfc3339(EPOCH + at)
    engine.api.objects[task_path("shop", name)] = raw_task(name, status=status)


def told(entry: TrackedTask) -> tuple[str, str]:
    return entry.status.phase.value, entry.status.reason


async def succeed(engine: Engine, entry: TrackedTask) -> None:
    engine.event(entry, EventKind.SUCCEEDED)
    engine.writer.writes[-1].succeed()
    await turn()


async def test_one_the_feed_shows_is_waited_for_without_a_question() -> None:
    engine = running()
    first = engine.add("first")
    second = engine.add("second", dependsOn=["first"])
    await turn()
    assert told(second) == ("Blocked", "WaitingForDependencies")
    assert "Task first to be Complete" in second.status.message
    assert (engine.publisher.names, engine.api.asked) == (["first"], [])
    await succeed(engine, first)
    assert engine.publisher.names == ["first", "second"]


async def test_an_outcome_is_only_an_end_once_it_is_written() -> None:
    engine = running()
    first = engine.add("first")
    engine.add("second", dependsOn=["first"])
    await turn()
    engine.event(first, EventKind.SUCCEEDED)
    await asyncio.sleep(60)
    assert engine.publisher.names == ["first"]


async def test_a_finished_one_is_looked_up() -> None:
    engine = running()
    stored(engine, "first", "Succeeded", at=-50.0)
    entry = engine.add("t", dependsOn=["first"])
    assert told(entry) == ("Blocked", "WaitingForDependencies")  # not known yet
    await asyncio.sleep(0.01)
    assert engine.publisher.names == ["t"]
    assert engine.api.asked == [task_path("shop", "first")]
    assert engine.tasks.dependencies.state_of(entry.task).completed == EPOCH - 50.0


@pytest.mark.parametrize(
    ("phase", "reason", "how"),
    [
        ("Failed", "RetriesExhausted", "has Failed with reason RetriesExhausted"),
        ("Cancelled", "Cancelled", "was Cancelled"),
    ],
)
async def test_one_that_can_never_be_complete_ends_those_that_wait_for_it(
    phase: str, reason: str, how: str
) -> None:
    engine = running()
    stored(engine, "first", phase, reason=reason)
    engine.add("second", dependsOn=["first"])
    third = engine.add("third", dependsOn=["second"])
    await asyncio.sleep(0.01)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "DependencyFailed")
    assert f"Task shop/first {how}" in write.status["message"]
    write.succeed()
    await turn()
    assert told(third) == ("Failed", "DependencyFailed")
    assert "shop/second has Failed with reason DependencyFailed" in third.status.message


async def test_one_that_does_not_exist_may_be_created_later() -> None:
    engine = running()
    entry = engine.add("t", dependsOn=["first"])
    await asyncio.sleep(0.01)
    assert told(entry) == ("Blocked", "DependencyNotFound")
    assert "there is no Task first in namespace shop" in entry.status.message
    first = engine.add("first")
    assert told(entry) == ("Blocked", "WaitingForDependencies")
    await turn()
    await succeed(engine, first)
    assert engine.publisher.names == ["first", "t"]


async def test_one_that_came_and_ended_unseen_is_found() -> None:
    engine = running()
    engine.add("t", dependsOn=["first"])
    await asyncio.sleep(1)
    stored(engine, "first", "Succeeded")
    await asyncio.sleep(AGAIN - 2)
    assert not engine.publisher.published
    await asyncio.sleep(2)
    assert engine.publisher.names == ["t"]


async def test_one_that_is_there_and_the_feed_never_shows_is_looked_at_again() -> None:
    engine = running()
    stored(engine, "first", "Pending")
    entry = engine.add("t", dependsOn=["first"])
    await asyncio.sleep(1)
    assert told(entry) == ("Blocked", "WaitingForDependencies")
    stored(engine, "first", "Succeeded")
    await asyncio.sleep(AGAIN)
    assert engine.publisher.names == ["t"]


async def test_one_that_is_deleted_unfinished_is_waited_for_anew() -> None:
    engine = running()
    first = engine.add("first")
    entry = engine.add("t", dependsOn=["first"])
    await turn()
    await engine.delete(first)
    assert told(entry) == ("Blocked", "DependencyNotFound")
    assert engine.publisher.names == ["first"]


async def test_a_look_up_that_fails_is_made_again_soon() -> None:
    engine = running()
    stored(engine, "first", "Succeeded")
    get = engine.api.get

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        raise ApiError(503, "ServiceUnavailable", "try again")

    engine.api.get = refuse  # type: ignore[method-assign]
    engine.add("t", dependsOn=["first"])
    await asyncio.sleep(0.5)
    assert not engine.publisher.published
    engine.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(1)
    assert engine.publisher.names == ["t"]


async def test_a_circle_ends_all_its_members_and_names_them() -> None:
    engine = running()
    a = engine.add("a", dependsOn=["b"])
    b = engine.add("b", dependsOn=["c"])
    c = engine.add("c", dependsOn=["a"])
    for entry in (a, b, c):
        assert told(entry) == ("Failed", "Invalid")
        circles = [" -> ".join(names) for names in ("abca", "bcab", "cabc")]
        assert any(circle in entry.status.message for circle in circles)
    assert not engine.publisher.published


async def test_what_a_task_depends_on_may_be_changed_until_it_runs() -> None:
    engine = running()
    first = engine.add("first")
    entry = engine.add("t", dependsOn=["nobody"])
    await asyncio.sleep(0.01)
    engine.add("t", dependsOn=["first"])
    assert told(entry) == ("Blocked", "WaitingForDependencies")
    engine.add("t")
    await turn()
    assert engine.publisher.names == ["first", "t"]
    assert not engine.tasks.dependencies.is_needed(("shop", "first"))
    assert first.stage is TaskStage.PUBLISHED


async def test_a_name_made_anew_keeps_its_own_dependencies() -> None:
    """The former one of the name is looked for, and found to be gone, after the new one came."""
    engine = running()
    engine.add("first")
    engine.add("t")
    engine.tasks.on_deleted(("shop", "t"), "uid-t")
    again = raw_task("t", dependsOn=["first"])
    again["metadata"]["uid"] = "uid-other"
    engine.api.objects[task_path("shop", "t")] = again
    entry = engine.show(again)
    await asyncio.sleep(1)
    assert list(engine.entries) == ["uid-first", "uid-other"]
    engine.tasks.on_queue_changed(("shop", "q"))
    await asyncio.sleep(1)
    assert told(entry) == ("Blocked", "WaitingForDependencies")


async def test_the_deadline_counts_from_when_the_last_one_was_complete() -> None:
    engine = running()
    first = engine.add("first", activeDeadlineSeconds=1000)
    entry = engine.add("t", dependsOn=["first"], activeDeadlineSeconds=10)
    await asyncio.sleep(100)
    assert told(entry) == ("Blocked", "WaitingForDependencies")
    engine.event(first, EventKind.SUCCEEDED)
    written = now()
    for write in engine.writer.writes:
        write.succeed()
    await asyncio.sleep(9.9)
    assert not entry.status.phase.terminal
    await asyncio.sleep(0.2)
    assert told(entry) == ("Failed", "DeadlineExceeded")
    assert entry.status.completion_time == pytest.approx(written + 10, abs=0.01)


async def test_needed_tells_whom_the_janitor_must_spare() -> None:
    engine = running()
    needed = engine.tasks.dependencies.is_needed
    stored(engine, "first", "Succeeded")
    entry = engine.add("t", dependsOn=["first"])
    await asyncio.sleep(0.01)
    assert needed(("shop", "first"))
    await succeed(engine, entry)
    assert entry.status.phase is Phase.SUCCEEDED
    assert not needed(("shop", "first"))
