"""What the scaling benchmark promises about itself, and how losses are summed up."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from tests.bench import scaling
from tests.bench.report import Report

NONE = frozenset[str]()


def losses(**some: frozenset[str]) -> scaling.Losses:
    every = {"removed": NONE, "busy": NONE, "killed": NONE, "repeated": NONE, **some}
    return scaling.Losses(**every, killed_containers=0, restarts=0, most=10)


def test_it_ends_within_ten_minutes() -> None:
    assert scaling.Settings().limit_seconds <= 570
    assert scaling.QUICK.limit_seconds <= 240


@pytest.mark.parametrize(("tasks", "floor"), [(200, 20.0), (40, 5.0), (3, 3.0)])
def test_the_floor_is_that_of_the_workers_that_are_asked_for(tasks: int, floor: float) -> None:
    assert scaling.Settings(drain_tasks=tasks).drain_floor_seconds == floor


def test_losses_of_all_parts_are_figures(capsys: pytest.CaptureFixture[str]) -> None:
    drains = [
        scaling.Drain(24.0, 5.0, losses(removed=frozenset("ab"), repeated=frozenset({"t"}))),
        scaling.Drain(26.0, 6.0, losses(removed=frozenset("c"))),
    ]
    shrink = losses(
        removed=frozenset("de"),
        busy=frozenset("d"),
        killed=frozenset({"u", "v"}),
        repeated=frozenset({"u"}),
    )
    report = Report(Console(width=100))
    report.end(scaling._report(scaling.Settings(), [1.0, 2.0, 1.5], drains, shrink, report))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["bench"] == "scaling"
    assert line["figures"] == {
        "zero_to_done_seconds": 1.5,
        "drain_seconds": 25.0,
        "back_to_zero_seconds": 5.5,
        "pods_removed": 5,
        "busy_pods_removed": 1,
        "tasks_killed": 3,
    }
    assert line["ratios"] == {"drain_vs_ideal": 1.25}
    assert line["scaling"]["shrink"] == "defaults"
    assert line["cited"]["keda_2.16.1"]["measured_in_this_run"] is False
