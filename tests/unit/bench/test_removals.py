"""Counting busy pods, killed runs and repeated ones from what was recorded."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.removals import (
    Removal,
    Run,
    busy_pods,
    killed,
    repeated,
    repeated_in_status,
    runs_in_status,
)


def run(task: str, pod: str, began: float, ended: float | None) -> Run:
    return Run(task=task, pod=pod, began=began, ended=ended)


def task(name: str, *attempts: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {"attempts": 1, "epoch": 0, "history": list(attempts), **status},
    }


@pytest.mark.parametrize(
    ("began", "ended", "busy"),
    [
        (5.0, 15.0, True),
        (5.0, None, True),
        (5.0, 9.9, False),
        (5.0, 10.0, False),
        (10.0, 15.0, False),
        (10.1, 15.0, False),
    ],
)
def test_a_pod_is_busy_when_a_run_is_under_way_at_its_removal(
    began: float, ended: float | None, busy: bool
) -> None:
    runs = [run("a", "p", 1.0, 2.0), run("b", "p", began, ended)]
    assert busy_pods([Removal("p", 10.0)], runs) == ({"p"} if busy else frozenset())


def test_only_the_pods_own_runs_count() -> None:
    runs = [run("a", "other", 0.0, None)]
    assert busy_pods([Removal("p", 10.0), Removal("q", 11.0)], runs) == frozenset()


def test_a_pod_with_many_runs_is_one_busy_pod() -> None:
    runs = [run("a", "p", 0.0, 20.0), run("b", "p", 0.0, 20.0)]
    assert busy_pods([Removal("p", 10.0)], runs) == {"p"}


def test_what_never_ended_was_killed() -> None:
    runs = [run("a", "p", 0.0, 1.0), run("b", "p", 0.0, None), run("b", "q", 5.0, 6.0)]
    assert killed(runs) == {"b"}


def test_what_ran_twice_is_told_once() -> None:
    runs = [run("a", "p", 0.0, 1.0), *(run("b", "q", at, at + 1) for at in (0.0, 2.0, 4.0))]
    assert repeated(runs) == {"b"}


def test_a_status_tells_of_attempts_and_of_what_was_taken_back() -> None:
    tasks = [task("once"), task("again", attempts=2), task("back", epoch=1), task("new")]
    tasks[-1]["status"] = {"phase": "Pending"}
    assert repeated_in_status(tasks) == {"again", "back"}


def test_the_attempts_of_a_status_are_runs() -> None:
    whole = {
        "worker": "p",
        "startTime": "2026-01-01T00:00:01.500Z",
        "finishTime": "2026-01-01T00:00:03Z",
    }
    running = {"worker": "q", "startTime": "2026-01-01T00:00:01Z"}
    nobody = {"worker": "", "startTime": "2026-01-01T00:00:01Z"}
    never = {"worker": "r"}
    first, second = runs_in_status([task("a", whole), task("b", running, nobody, never)])
    assert (first.task, first.pod, first.ended) == ("a", "p", first.began + 1.5)
    assert (second.task, second.pod, second.ended) == ("b", "q", None)
    assert busy_pods([Removal("p", first.began + 1)], [first]) == {"p"}
