"""``python -m tests.simulation``."""

import json

import pytest

from tests.simulation.__main__ import main


def test_the_last_line_is_json_in_the_form_of_the_benchmarks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--load", "pareto_times", "--seeds", "1"])
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert outcome["bench"] == "simulation"
    assert outcome["figures"]["pareto_times_killed"] == 0
    assert outcome["ratios"]["pareto_times_wait_p99_vs_keda_fastest"] < 0.5
    assert outcome["loads"]["pareto_times"]["KEDA"]["wait_p99"] > 10


def test_a_load_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--load", "mondays"])
    assert ended.value.code == 2
    assert "mondays" in capsys.readouterr().err
