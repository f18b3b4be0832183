"""Tasks that wait for others: what the feed shows, what is looked up, and what becomes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, TaskHarness, now, raw_task, turn

pytestmark = pytest.mark.looptime

#: How often what does not exist is looked for again.
AGAIN = 15.0


def running(**policy: int) -> TaskHarness:
    harness = TaskHarness(**policy)  # type: ignore[arg-type]
    harness._spawn(harness.tasks.dependencies.run(), "dependencies")
    harness.open()
    return harness


def stored(
    harness: TaskHarness, name: str, phase: str, *, reason: str = "", at: float = 0.0
) -> None:
    """Have the API server hold a Task the feed does not show."""
    status = {"phase": phase, "reason": reason, "observedGeneration": 1}
    if phase in ("Succeeded", "Failed", "Cancelled"):
        status["completionTime"] = to_rfc3339(EPOCH + at)
    harness.api.objects[task_path("shop", name)] = raw_task(name, status=status)


def phase_and_reason(entry: TrackedTask) -> tuple[str, str]:
    return entry.status.phase.value, entry.status.reason


async def succeed(harness: TaskHarness, entry: TrackedTask) -> None:
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[-1].succeed()
    await turn()


async def test_a_dependency_the_informer_has_is_not_read() -> None:
    harness = running()
    first = harness.add("first")
    second = harness.add("second", dependsOn=["first"])
    await turn()
    assert phase_and_reason(second) == ("Blocked", "WaitingForDependencies")
    assert "Task first to be Complete" in second.status.message
    assert (harness.publisher.names, harness.api.asked) == (["first"], [])
    await succeed(harness, first)
    assert harness.publisher.names == ["first", "second"]


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize(
    ("ends", "when", "becomes"),
    [
        ("Failed", "Failed", ""),
        ("Failed", "Finished", ""),
        ("Failed", "Succeeded", "DependencyFailed"),
        ("Succeeded", "Failed", "Skipped"),
        ("Succeeded", "Finished", ""),
        ("Cancelled", "Failed", "Skipped"),
        ("Cancelled", "Finished", ""),
    ],
)
async def test_a_task_runs_when_its_dependency_has_ended_as_it_asks(
    ends: str, when: str, becomes: str, is_read: bool
) -> None:
    harness = running(max_attempts=1)
    if is_read:
        stored(harness, "first", ends, at=-50.0)
    else:
        first = harness.add("first")
    second = harness.add("second", dependencies=[{"name": "first", "when": when}])
    await turn()
    if not is_read:
        assert second.status.message == "spec.dependencies: waits for Task first to end"
        if ends == "Cancelled":
            harness.add("first", cancel=True)
        else:
            error = None if ends == "Succeeded" else EventError(type="Boom", message="no")
            kind = EventKind.SUCCEEDED if ends == "Succeeded" else EventKind.FAILED
            harness.event(first, kind, error=error)
        harness.writer.writes[-1].succeed()
    await asyncio.sleep(1)
    assert ("second" in harness.publisher.names) == (not becomes)
    assert second.status.reason == becomes
    if becomes == "Skipped":
        assert second.status.phase is Phase.CANCELLED
        assert "and this one runs only when it has Failed" in second.status.message


async def test_what_is_waited_for_can_be_changed() -> None:
    harness = running()
    first = harness.add("first")
    second = harness.add("second", dependencies=[{"name": "first", "when": "Failed"}])
    harness.add("second", dependencies=[{"name": "first", "when": "Finished"}])
    await turn()
    await succeed(harness, first)
    assert second.stage is TaskStage.PUBLISHED


async def test_a_dependency_counts_as_finished_once_its_status_is_written() -> None:
    harness = running()
    first = harness.add("first")
    harness.add("second", dependsOn=["first"])
    await turn()
    harness.event(first, EventKind.SUCCEEDED)
    await asyncio.sleep(60)
    assert harness.publisher.names == ["first"]


async def test_a_finished_dependency_is_read() -> None:
    harness = running()
    stored(harness, "first", "Succeeded", at=-50.0)
    entry = harness.add("t", dependsOn=["first"])
    assert phase_and_reason(entry) == ("Blocked", "WaitingForDependencies")  # not known yet
    await asyncio.sleep(0.01)
    assert harness.publisher.names == ["t"]
    assert harness.api.asked == harness.api.rows == [task_path("shop", "first")]
    assert harness.tasks.dependencies.state_of(entry.task).completed == EPOCH - 50.0


@pytest.mark.parametrize(
    ("phase", "reason", "how"),
    [
        ("Failed", "RetriesExhausted", "has Failed with reason RetriesExhausted"),
        ("Cancelled", "Cancelled", "was Cancelled"),
    ],
)
async def test_a_failed_dependency_ends_its_dependents(phase: str, reason: str, how: str) -> None:
    harness = running()
    stored(harness, "first", phase, reason=reason)
    harness.add("second", dependsOn=["first"])
    third = harness.add("third", dependsOn=["second"])
    await asyncio.sleep(0.01)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "DependencyFailed")
    assert f"Task shop/first {how}" in write.status["message"]
    write.succeed()
    await turn()
    assert phase_and_reason(third) == ("Failed", "DependencyFailed")
    assert "shop/second has Failed with reason DependencyFailed" in third.status.message


async def test_a_missing_dependency_may_be_created_later() -> None:
    harness = running()
    entry = harness.add("t", dependsOn=["first"])
    await asyncio.sleep(0.01)
    assert phase_and_reason(entry) == ("Blocked", "DependencyNotFound")
    assert "there is no Task first in namespace shop" in entry.status.message
    first = harness.add("first")
    assert phase_and_reason(entry) == ("Blocked", "WaitingForDependencies")
    await turn()
    await succeed(harness, first)
    assert harness.publisher.names == ["first", "t"]


async def test_a_dependency_that_came_and_ended_unseen_is_found() -> None:
    harness = running()
    harness.add("t", dependsOn=["first"])
    await asyncio.sleep(1)
    stored(harness, "first", "Succeeded")
    await asyncio.sleep(AGAIN - 2)
    assert not harness.publisher.published
    await asyncio.sleep(2)
    assert harness.publisher.names == ["t"]


async def test_an_existing_dependency_the_informer_never_shows_is_read_again() -> None:
    harness = running()
    stored(harness, "first", "Pending")
    entry = harness.add("t", dependsOn=["first"])
    await asyncio.sleep(1)
    assert phase_and_reason(entry) == ("Blocked", "WaitingForDependencies")
    stored(harness, "first", "Succeeded")
    await asyncio.sleep(AGAIN)
    assert harness.publisher.names == ["t"]


async def test_a_dependency_deleted_unfinished_is_waited_for_again() -> None:
    harness = running()
    first = harness.add("first")
    entry = harness.add("t", dependsOn=["first"])
    await turn()
    await harness.delete(first)
    assert phase_and_reason(entry) == ("Blocked", "DependencyNotFound")
    assert harness.publisher.names == ["first"]


async def test_a_deleted_dependency_that_comes_again_and_ends_unseen_is_found() -> None:
    harness = running()
    first = harness.add("first")
    harness.add("t", dependsOn=["first"])
    await turn()
    await harness.delete(first)
    stored(harness, "first", "Succeeded")
    await asyncio.sleep(AGAIN + 1)
    assert harness.publisher.names == ["first", "t"]


async def test_a_failed_read_is_repeated_soon() -> None:
    harness = running()
    stored(harness, "first", "Succeeded")
    get = harness.api.get

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        raise ApiError(503, "ServiceUnavailable", "try again")

    harness.api.get = refuse  # type: ignore[method-assign]
    harness.add("t", dependsOn=["first"])
    await asyncio.sleep(0.5)
    assert not harness.publisher.published
    harness.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(1)
    assert harness.publisher.names == ["t"]


async def test_a_cycle_ends_all_its_members_and_names_them() -> None:
    harness = running()
    a = harness.add("a", dependsOn=["b"])
    b = harness.add("b", dependsOn=["c"])
    c = harness.add("c", dependsOn=["a"])
    await turn()
    for entry in (a, b, c):
        assert phase_and_reason(entry) == ("Failed", "Invalid")
        circles = [" -> ".join(names) for names in ("abca", "bcab", "cabc")]
        assert any(circle in entry.status.message for circle in circles)
    assert not harness.publisher.published


async def test_what_a_task_depends_on_may_be_changed_until_it_runs() -> None:
    harness = running()
    first = harness.add("first")
    entry = harness.add("t", dependsOn=["nobody"])
    await asyncio.sleep(0.01)
    harness.add("t", dependsOn=["first"])
    assert phase_and_reason(entry) == ("Blocked", "WaitingForDependencies")
    harness.add("t")
    await turn()
    assert harness.publisher.names == ["first", "t"]
    assert not harness.tasks.dependencies.is_needed(("shop", "first"))
    assert first.stage is TaskStage.PUBLISHED


async def test_a_task_created_again_keeps_its_own_dependencies() -> None:
    """The former one of the name is looked for, and found to be gone, after the new one came."""
    harness = running()
    harness.add("first")
    harness.add("t")
    harness.tasks.on_deleted(("shop", "t"), "uid-t")
    again = raw_task("t", dependsOn=["first"])
    again["metadata"]["uid"] = "uid-other"
    harness.api.objects[task_path("shop", "t")] = again
    entry = harness.show(again)
    await asyncio.sleep(1)
    assert list(harness.entries) == ["uid-first", "uid-other"]
    harness.tasks.on_queue_changed(("shop", "q"))
    await asyncio.sleep(1)
    assert phase_and_reason(entry) == ("Blocked", "WaitingForDependencies")


async def test_the_deadline_counts_from_when_the_last_one_was_complete() -> None:
    harness = running()
    first = harness.add("first", activeDeadlineSeconds=1000)
    entry = harness.add("t", dependsOn=["first"], activeDeadlineSeconds=10)
    await asyncio.sleep(100)
    assert phase_and_reason(entry) == ("Blocked", "WaitingForDependencies")
    harness.event(first, EventKind.SUCCEEDED)
    written = now()
    for write in harness.writer.writes:
        write.succeed()
    await asyncio.sleep(9.9)
    assert not entry.status.phase.terminal
    await asyncio.sleep(0.2)
    assert phase_and_reason(entry) == ("Failed", "DeadlineExceeded")
    assert entry.status.completion_time == pytest.approx(written + 10, abs=0.01)


async def test_is_needed_names_the_tasks_that_must_not_be_deleted() -> None:
    harness = running()
    needed = harness.tasks.dependencies.is_needed
    stored(harness, "first", "Succeeded")
    entry = harness.add("t", dependsOn=["first"])
    await asyncio.sleep(0.01)
    assert needed(("shop", "first"))
    await succeed(harness, entry)
    assert entry.status.phase is Phase.SUCCEEDED
    assert not needed(("shop", "first"))
