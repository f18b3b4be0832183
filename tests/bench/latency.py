"""Latency: one Task at a time on a warm worker, from just before its create to Complete seen."""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from taskqueue.cli.arguments import CommandParsers
from tests.bench import cluster, floor, jobs
from tests.bench.command_line import add_benchmark, add_number, measure_cluster
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, percentile, ratio
from tests.bench.task_load import TASKS, create_task
from tests.bench.watches import TOUCHED_TASKS, EndWatch

_WARM_UP_TASKS = 20
_TASK_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    tasks: int
    jobs: int
    concurrency: int


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report."""
    await cluster.apply_queue(
        target.client,
        scaling={"minReplicas": 1, "maxReplicas": 1},
        concurrency=settings.concurrency,
    )
    await cluster.workers_ready(target.client, 1)
    report.say(f"one worker is ready; {settings.tasks} Tasks, one at a time")

    async def task(name: str) -> None:
        await create_task(target, name)

    await _one_by_one(target, TASKS, "warm-up", _WARM_UP_TASKS, task)
    ours = await _one_by_one(target, TASKS, "task", settings.tasks, task)
    report.say("the same by the bare client, and with the resource of 0829e12")
    async with floor.floors(target.client):
        floors = await _floor(target, floor.NOW, settings.tasks)
        before = await _floor(target, floor.BEFORE, settings.tasks)
    report.say(f"{settings.jobs} Kubernetes Jobs, one at a time")
    job = [1000 * await jobs.measure(target, f"job-{n}") for n in range(settings.jobs)]
    spread = {
        "task_ms": Spread.of(ours),
        "floor_ms": Spread.of(floors),
        "floor_before_ms": Spread.of(before),
        "kubernetes_job_ms": Spread.of(job),
    }
    report.spreads("latency from create to Complete, ms", spread)
    figures = {
        "p50_ms": percentile(ours, 50),
        "p90_ms": percentile(ours, 90),
        "p99_ms": percentile(ours, 99),
        "floor_p50_ms": percentile(floors, 50),
        "floor_p99_ms": percentile(floors, 99),
        "floor_before_p50_ms": percentile(before, 50),
        "floor_before_p99_ms": percentile(before, 99),
        "kubernetes_job_p50_ms": percentile(job, 50),
    }
    report.table("percentiles", ["", "ms"], figures.items())
    return Outcome(
        bench="latency",
        figures=figures,
        ratios={
            "vs_kubernetes_job": ratio(figures["p50_ms"], figures["kubernetes_job_p50_ms"]),
            "vs_floor": ratio(figures["p50_ms"], figures["floor_p50_ms"]),
            "p50_vs_floor_before": ratio(figures["p50_ms"], figures["floor_before_p50_ms"]),
            "p99_vs_floor_before": ratio(figures["p99_ms"], figures["floor_before_p99_ms"]),
        },
        spread=spread,
    )


async def _floor(target: cluster.Cluster, kind: floor.Floor, count: int) -> list[float]:
    async def bare(name: str) -> None:
        await kind.run_one(target, name)

    await _one_by_one(target, kind.copies, "warm-up", _WARM_UP_TASKS, bare)
    return await _one_by_one(target, kind.copies, "floor", count, bare)


async def _one_by_one(
    target: cluster.Cluster,
    path: str,
    prefix: str,
    count: int,
    start: Callable[[str], Awaitable[None]],
) -> list[float]:
    """Return the milliseconds each object took to be seen ended."""
    latencies = []
    async with EndWatch(target.watcher, path, selectors=TOUCHED_TASKS) as watch:
        for index in range(count):
            name = f"{prefix}-{index:06}"
            begun = time.perf_counter()
            await start(name)
            seen = await watch.all_ended([name], seconds=_TASK_SECONDS)
            latencies.append(1000 * (seen[name] - begun))
    return latencies


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "latency",
        _run_command,
        help="Measure one Task at a time on a warm worker, from create to Complete.",
    )
    add_number(parser, "--tasks", 200, "Tasks, one after the other")
    add_number(parser, "--jobs", 8, "Jobs, one after the other")
    add_number(parser, "--concurrency", 8, "Tasks the worker runs at once")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(tasks=options.tasks, jobs=options.jobs, concurrency=options.concurrency)
    if options.quick:
        settings = replace(settings, tasks=min(options.tasks, 20), jobs=1)
    return measure_cluster(options, lambda target, report: run(target, settings, report))
