"""How long people wait for the command line: whole processes, without and with an API server.

``--help`` and the SDK's import are this machine's alone. ``get`` asks the API server of the
kubeconfig by kubectl, where there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.paths import KUBECONFIG
from taskqueue.cli.arguments import CommandParsers
from tests.bench.command_line import add_benchmark, add_number, measure_here
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread

ROOT = Path(__file__).parents[2]

#: Whole process, median, in milliseconds.
HELP_MS, GET_MS, IMPORT_MS = 200.0, 300.0, 150.0

_COMMANDS: Mapping[str, tuple[Sequence[str], float]] = {
    "help": (["-m", "taskqueue", "--help"], HELP_MS),
    "import": (["-c", "from taskqueue import task"], IMPORT_MS),
    "get": (["-m", "taskqueue", "get", "-A"], GET_MS),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How often each command runs."""

    runs: int = 21


def measure(kubeconfig: Path | None, settings: Settings, report: Report) -> Outcome:
    """Run each command so often, in turns, and return the medians."""
    names = [name for name in _COMMANDS if name != "get"]
    if kubeconfig is not None and kubeconfig.exists() and shutil.which("kubectl"):
        names.append("get")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    environment |= {} if kubeconfig is None else {"KUBECONFIG": str(kubeconfig)}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(settings.runs + 1):
        for name in names:
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, *_COMMANDS[name][0]],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            if turn:  # the first one writes bytecode
                times[name].append((time.perf_counter() - begin) * 1e3)
    spread = {f"{name}_ms": Spread.of(each) for name, each in times.items()}
    report.spreads("milliseconds", spread)
    figures = {name: one.middle for name, one in spread.items()}
    limits = {
        f"{name}_vs_limit": spread[f"{name}_ms"].middle / _COMMANDS[name][1] for name in names
    }
    return Outcome("cli", figures, limits, spread)


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "cli",
        _run_command,
        help="Measure the command line: whole processes, as people wait.",
    )
    add_number(parser, "--runs", 21, "runs of each command")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(runs=3 if options.quick else options.runs)
    kubeconfig = Path(options.kubeconfig) if options.kubeconfig else KUBECONFIG
    return measure_here(lambda report: asyncio.to_thread(measure, kubeconfig, settings, report))
