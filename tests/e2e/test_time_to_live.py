"""Finished Tasks are deleted when their time to live is over, and not while they are needed."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Harness, true_conditions

pytestmark = pytest.mark.cluster

#: Longer than any test here takes.
LONG = 3600


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.queue("short", scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)
    harness.available(1, "short")


def test_a_finished_task_is_deleted_after_its_time(harness: Harness) -> None:
    harness.task("soon", ttlSecondsAfterFinished=2)
    harness.task("stays")
    harness.task("later", ttlSecondsAfterFinished=LONG)
    status = harness.finished("soon")
    assert "Complete" in true_conditions(status)
    harness.tasks.wait_deleted("soon")
    harness.all_finished(["stays", "later"])
    assert {"stays", "later"} <= names(harness)


def test_its_name_may_be_used_again(harness: Harness) -> None:
    seen: set[str] = set()
    for _ in range(2):
        harness.task("again", ttlSecondsAfterFinished=0)
        new = harness.tasks.wait(
            "again", lambda one: one["metadata"]["uid"] not in seen, what="seen anew"
        )
        seen.add(new["metadata"]["uid"])
        harness.tasks.wait_deleted("again")
    ends = [one for one in harness.tasks.versions("again") if one["status"]["phase"] == "Succeeded"]
    assert len({one["metadata"]["uid"] for one in ends}) == 2


def test_failed_and_cancelled_tasks_are_deleted_too(harness: Harness) -> None:
    harness.task("failed", "give_up", ttlSecondsAfterFinished=0)
    harness.task("cancelled", suspend=True, ttlSecondsAfterFinished=0)
    harness.api.patch(harness.path("tasks", "cancelled"), {"spec": {"cancel": True}})
    for name in ("failed", "cancelled"):
        harness.tasks.wait_deleted(name)


def test_a_queues_default_is_for_those_that_say_nothing_even_if_finished(harness: Harness) -> None:
    harness.finished(harness.task("by-default", queue="short"))
    harness.finished(harness.task("own", queue="short", ttlSecondsAfterFinished=LONG))
    harness.finished(harness.task("of-another-queue"))
    harness.change_queue("short", taskDefaults={"ttlSecondsAfterFinished": 1})
    harness.tasks.wait_deleted("by-default")
    harness.task("new", queue="short")
    harness.tasks.wait_deleted("new")
    assert {"own", "of-another-queue"} <= names(harness)


def test_what_an_unfinished_task_depends_on_stays(harness: Harness) -> None:
    harness.task("needs", dependsOn=["needed"], suspend=True)
    harness.finished(harness.task("needed", ttlSecondsAfterFinished=1))
    harness.task("not-needed", ttlSecondsAfterFinished=8)
    harness.tasks.wait_deleted("not-needed")  # finished later, with more time to live
    assert "needed" in names(harness)
    harness.api.patch(harness.path("tasks", "needs"), {"spec": {"suspend": False}})
    assert harness.finished("needs")["phase"] == "Succeeded"
    harness.tasks.wait_deleted("needed")


def names(harness: Harness) -> set[str]:
    """Return the names of all Tasks there are."""
    return {one["metadata"]["name"] for one in harness.api.get(harness.path("tasks"))["items"]}
