"""Benchmarks that measure Tasks a second with something and without it, in turn."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from taskqueue.cli.arguments import CommandParsers
from tests.bench.cluster import Cluster
from tests.bench.command_line import add_benchmark, add_load, add_number, measure_cluster
from tests.bench.report import Outcome, Report


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        tasks: of a round.
        rounds: of each, with and without, in turn.
        workers: pods.
        concurrency: Tasks each runs at once.
        clients: creates under way at once.
    """

    tasks: int
    rounds: int
    workers: int
    concurrency: int
    clients: int


Measure = Callable[[Cluster, Settings, Report], Awaitable[Outcome]]


def add_with_and_without(
    benchmarks: CommandParsers,
    name: str,
    measure: Measure,
    *,
    help: str,
    tasks: int = 2000,
    tasks_help: str = "Tasks of a round",
    rounds: int = 4,
) -> None:
    """Add such a benchmark to the command line, with its usual number of Tasks and rounds."""

    def run(options: argparse.Namespace) -> int:
        settings = Settings(
            tasks=min(options.tasks, 200) if options.quick else options.tasks,
            rounds=1 if options.quick else options.rounds,
            workers=options.workers,
            concurrency=options.concurrency,
            clients=options.clients,
        )
        return measure_cluster(
            options,
            lambda target, report: measure(target, settings, report),
            clients=options.clients,
        )

    parser = add_benchmark(benchmarks, name, run, help=help)
    add_number(parser, "--tasks", tasks, tasks_help)
    add_number(parser, "--rounds", rounds, "rounds of each")
    add_load(parser)
