"""``python -m tests.simulation``."""

import json

from typer.testing import CliRunner

from tests.simulation.__main__ import app


def test_the_last_line_is_json_in_the_form_of_the_benchmarks() -> None:
    done = CliRunner().invoke(app, ["--load", "pareto_times", "--seeds", "1"])
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.output.splitlines()[-1])
    assert outcome["bench"] == "simulation"
    assert outcome["figures"]["pareto_times_killed"] == 0
    assert outcome["ratios"]["pareto_times_wait_p99_vs_keda_fastest"] < 0.5
    assert outcome["loads"]["pareto_times"]["KEDA"]["wait_p99"] > 10


def test_a_load_that_is_not_there_is_told() -> None:
    done = CliRunner().invoke(app, ["--load", "mondays"])
    assert done.exit_code == 2
    assert "mondays" in done.output
