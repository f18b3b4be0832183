"""Every benchmark is a command, and ends with the code and the text that its caller relies on."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import tests.bench
from taskqueue.cli.arguments import add_group
from tests.bench.__main__ import BENCHMARKS
from tests.bench.command_line import measure_cluster, measure_here
from tests.bench.deadline import BenchError
from tests.bench.report import Outcome, Report


def test_every_module_with_a_command_is_a_benchmark_of_the_command_line() -> None:
    folder = Path(next(iter(tests.bench.__path__)))
    with_command = {
        file.stem for file in folder.glob("*.py") if "\ndef add_command(" in file.read_text()
    }

    assert with_command == {one.__name__.rpartition(".")[2] for one in BENCHMARKS}


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.__name__.rpartition(".")[2])
def test_a_benchmark_can_be_run_without_any_option(benchmark: object) -> None:
    parser = argparse.ArgumentParser()
    benchmark.add_command(add_group(parser))  # type: ignore[attr-defined]
    name = benchmark.__name__.rpartition(".")[2]  # type: ignore[attr-defined]

    options = parser.parse_args([name, "--quick"])

    assert options.quick
    assert options.kubeconfig is None
    assert callable(options.run)


def test_a_benchmark_without_a_figure_ends_with_1_and_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run(report: Report) -> Outcome:
        raise BenchError("the workers do not become ready")

    assert measure_here(run) == 1
    assert "no result: the workers do not become ready" in capsys.readouterr().err


def test_a_kubeconfig_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def run(cluster: object, report: Report) -> Outcome:
        raise AssertionError("there is no cluster")

    missing = tmp_path / "kubeconfig"
    assert measure_cluster(argparse.Namespace(kubeconfig=missing), run) == 1
    assert f"there is no kubeconfig {missing}" in capsys.readouterr().err
