"""Finished Tasks are deleted when their time to live is over, and not while they are needed."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Lab, true_conditions

pytestmark = pytest.mark.cluster

#: Longer than any test here takes.
LONG = 3600


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab) -> None:
    lab.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    lab.queue("short", scaling={"minReplicas": 1, "maxReplicas": 1})
    lab.available(1)
    lab.available(1, "short")


def test_a_finished_task_is_deleted_after_its_time(lab: Lab) -> None:
    lab.task("soon", ttlSecondsAfterFinished=2)
    lab.task("stays")
    lab.task("later", ttlSecondsAfterFinished=LONG)
    status = lab.finished("soon")
    assert "Complete" in true_conditions(status)
    lab.tasks.wait_gone("soon")
    lab.all_finished(["stays", "later"])
    assert {"stays", "later"} <= names(lab)


def test_its_name_may_be_used_again(lab: Lab) -> None:
    seen: set[str] = set()
    for _ in range(2):
        lab.task("again", ttlSecondsAfterFinished=0)
        new = lab.tasks.wait(
            "again", lambda one: one["metadata"]["uid"] not in seen, what="seen anew"
        )
        seen.add(new["metadata"]["uid"])
        lab.tasks.wait_gone("again")
    ends = [one for one in lab.tasks.versions("again") if one["status"]["phase"] == "Succeeded"]
    assert len({one["metadata"]["uid"] for one in ends}) == 2


def test_failed_and_cancelled_tasks_are_deleted_too(lab: Lab) -> None:
    lab.task("failed", "give_up", ttlSecondsAfterFinished=0)
    lab.task("cancelled", suspend=True, ttlSecondsAfterFinished=0)
    lab.api.patch(lab.path("tasks", "cancelled"), {"spec": {"cancel": True}})
    for name in ("failed", "cancelled"):
        lab.tasks.wait_gone(name)


def test_a_queues_default_is_for_those_that_say_nothing_even_if_finished(lab: Lab) -> None:
    lab.finished(lab.task("by-default", queue="short"))
    lab.finished(lab.task("own", queue="short", ttlSecondsAfterFinished=LONG))
    lab.finished(lab.task("of-another-queue"))
    lab.change_queue("short", taskDefaults={"ttlSecondsAfterFinished": 1})
    lab.tasks.wait_gone("by-default")
    lab.task("new", queue="short")
    lab.tasks.wait_gone("new")
    assert {"own", "of-another-queue"} <= names(lab)


def test_what_an_unfinished_task_depends_on_stays(lab: Lab) -> None:
    lab.task("needs", dependsOn=["needed"], suspend=True)
    lab.finished(lab.task("needed", ttlSecondsAfterFinished=1))
    lab.task("not-needed", ttlSecondsAfterFinished=8)
    lab.tasks.wait_gone("not-needed")  # finished later, with more time to live
    assert "needed" in names(lab)
    lab.api.patch(lab.path("tasks", "needs"), {"spec": {"suspend": False}})
    assert lab.finished("needs")["phase"] == "Succeeded"
    lab.tasks.wait_gone("needed")


def test_another_operator_knows_whom_the_former_would_have_deleted(lab: Lab) -> None:
    lab.finished(lab.task("left", ttlSecondsAfterFinished=5))
    lab.finished(lab.task("left-for-long", ttlSecondsAfterFinished=LONG))
    lab.kill_operator()
    lab.tasks.wait_gone("left", seconds=90)
    assert "left-for-long" in names(lab)


def names(lab: Lab) -> set[str]:
    """Return the names of all Tasks there are."""
    return {one["metadata"]["name"] for one in lab.api.get(lab.path("tasks"))["items"]}
