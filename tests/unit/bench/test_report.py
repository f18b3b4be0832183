"""The line for programs."""

import io
import json

import pytest
from rich.console import Console

from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread

OUTCOME = Outcome(
    bench="throughput",
    figures={"tasks_per_second": 312.34567, "api_writes_per_task": 1.0},
    ratios={"vs_kubernetes_job": 130.144, "vs_floor": 0.61234},
    spread={"tasks_per_second": Spread.of([300.0, 312.34567, 320.0])},
    details={"machine": {"cores": 2}},
)


def test_the_line_is_one_json_object() -> None:
    line = OUTCOME.line()
    assert "\n" not in line
    assert json.loads(line) == {
        "bench": "throughput",
        "figures": {"tasks_per_second": 312.3, "api_writes_per_task": 1.0},
        "ratios": {"vs_kubernetes_job": 130.1, "vs_floor": 0.6123},
        "spread": {"tasks_per_second": {"min": 300, "median": 312.3, "max": 320, "n": 3}},
        "machine": {"cores": 2},
    }


def test_the_line_is_the_last_thing_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Report(Console(file=None, width=100)).end(OUTCOME)
    assert capsys.readouterr().out.splitlines()[-1] == OUTCOME.line()


@pytest.mark.parametrize(("busy", "noisy"), [(0.05, False), (0.8, True), (None, False)])
def test_a_busy_machine_is_told(busy: float | None, noisy: bool) -> None:
    out = io.StringIO()
    Report(Console(file=out, width=100)).machine({"cores": 2, "busy_before": busy})
    assert ("noisy" in out.getvalue()) is noisy
