"""Throughput: many Tasks at once on warm workers, from the first create to the last end seen."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from taskqueue.api.common import GROUP
from taskqueue.cli.arguments import CommandParsers
from tests.bench import api_metrics, cluster, floor, jobs, processes
from tests.bench.command_line import add_benchmark, add_load, add_number, measure_cluster, operated
from tests.bench.load import at_once
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio, significant
from tests.bench.task_load import TASKS, create_task
from tests.bench.watches import TOUCHED_TASKS, EndWatch

#: A write that comes late, after the last Task was seen ended, still counts.
_SETTLE_SECONDS = 2.5
_WARM_UP_TASKS = 200
_SHOWN_RESOURCES = 6
#: Slower than this by far, and the benchmark gives up: Tasks a second.
_SLOWEST = 5
_API_SERVER = "kube-apiserver"


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        tasks: of a round, and objects of the floor.
        job_completions: of a round's Job.
        rounds: how often all four are measured, in turn.
        workers: pods.
        concurrency: Tasks each runs at once.
        clients: creates under way at once, and of the floor.
    """

    tasks: int
    job_completions: int
    rounds: int
    workers: int
    concurrency: int
    clients: int


@dataclass(frozen=True, slots=True)
class FloorRound:
    """One round of a floor."""

    seconds: float
    cpu: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class Round:
    """One round of Tasks."""

    seconds: float
    creating_seconds: float
    left_when_created: int
    writes: api_metrics.Writes
    cpu: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds: of the floor, of that of 0829e12, of Tasks, and the seconds of each Job."""

    floors: list[FloorRound]
    floors_before: list[FloorRound]
    rounds: list[Round]
    job_seconds: list[float]


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report."""
    scaling = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
    await cluster.apply_queue(target.client, scaling=scaling, concurrency=settings.concurrency)
    await cluster.workers_ready(target.client, settings.workers)
    report.say(
        f"{settings.workers} workers with {settings.concurrency} slots are ready; "
        f"{settings.clients} creates at once"
    )
    await measure_tasks(target, "warm-up", min(_WARM_UP_TASKS, settings.tasks), settings.clients)
    bare: list[FloorRound] = []
    before: list[FloorRound] = []
    rounds, job_seconds = [], []
    async with floor.floors(target.client):
        for number in range(settings.rounds):
            names = _names(f"floor-{number}", settings.tasks)
            floors = [(floor.NOW, bare, "floor"), (floor.BEFORE, before, "floor of 0829e12")]
            # What was measured before has still to be cleaned up: neither is always the first.
            for kind, to, name in floors if number % 2 else reversed(floors):
                await asyncio.sleep(_SETTLE_SECONDS)
                to.append(await _floor(target, kind, names, settings.clients))
                rate = settings.tasks / to[-1].seconds
                report.say(f"round {number}: {name} {rate:.1f} tasks/s")
            await cluster.delete_all(target.client, TASKS)
            rounds.append(
                await measure_tasks(target, f"r{number}", settings.tasks, settings.clients)
            )
            report.say(f"round {number}: Tasks {_describe(rounds[-1], settings.tasks)}")
            completions = settings.job_completions
            job_seconds.append(
                await jobs.measure(
                    target, f"job-{number}", completions=completions, deadline=60 + 10 * completions
                )
            )
            report.say(f"round {number}: Job {completions / job_seconds[-1]:.2f} tasks/s")
    return _report(settings, Measured(bare, before, rounds, job_seconds), report)


async def _floor(
    target: cluster.Cluster, kind: floor.Floor, names: Sequence[str], clients: int
) -> FloorRound:
    before = processes.sample(target.host)
    seconds = await kind.measure(target, names, clients=clients)
    after = processes.sample(target.host)
    await cluster.delete_all(target.client, kind.copies)
    return FloorRound(seconds, _cpu_between(before, after))


async def measure_tasks(target: cluster.Cluster, prefix: str, count: int, clients: int) -> Round:
    """Create so many Tasks, and wait until all have ended."""
    names = _names(prefix, count)
    writes = await api_metrics.read_writes(target.access)
    async with EndWatch(target.watcher, TASKS, selectors=TOUCHED_TASKS) as watch:
        before = processes.sample(target.host)
        start = time.perf_counter()
        await at_once(clients, names, lambda name: create_task(target, name))
        created = time.perf_counter()
        seen = await watch.all_ended(names, seconds=60 + count / _SLOWEST)
        after = processes.sample(target.host)
    await asyncio.sleep(_SETTLE_SECONDS)
    writes = await api_metrics.read_writes(target.access) - writes
    return Round(
        seconds=max(seen.values()) - start,
        creating_seconds=created - start,
        left_when_created=sum(at > created for at in seen.values()),
        writes=writes,
        cpu=_cpu_between(before, after),
    )


def _cpu_between(
    before: processes.CpuSample | None, after: processes.CpuSample | None
) -> dict[str, float] | None:
    return processes.between(before, after) if before and after else None


def _describe(one: Round, tasks: int) -> str:
    """Print a round's rate, and the rate of its end, when nothing is created any more."""
    after = one.left_when_created / max(one.seconds - one.creating_seconds, 0.001)
    return (
        f"{tasks / one.seconds:.1f} tasks/s in {one.seconds:.2f} s; all were created after "
        f"{one.creating_seconds:.2f} s, {one.left_when_created} were left then: {after:.0f}/s"
    )


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{index:06}" for index in range(count)]


def _report(settings: Settings, measured: Measured, report: Report) -> Outcome:
    rounds, tasks = measured.rounds, settings.tasks
    ours = Spread.of([tasks / one.seconds for one in rounds])
    bare = Spread.of([tasks / one.seconds for one in measured.floors])
    before = Spread.of([tasks / one.seconds for one in measured.floors_before])
    job = Spread.of([settings.job_completions / seconds for seconds in measured.job_seconds])
    per_task = Spread.of(
        [(api_metrics.of_resource(one.writes, GROUP, "tasks") - tasks) / tasks for one in rounds]
    )
    spread = {
        "tasks_per_second": ours,
        "floor_tasks_per_second": bare,
        "floor_before_tasks_per_second": before,
        "kubernetes_job_tasks_per_second": job,
        "api_writes_per_task": per_task,
    }
    report.spreads("throughput, tasks/s", spread)
    middle = _middle(rounds)
    report.table(
        "writes the API server took during a round (median round)",
        ["resource", "writes"],
        [(str(key), count) for key, count in middle.writes.most_common(_SHOWN_RESOURCES)],
    )
    costs = [_cost(one.cpu, tasks) for one in (middle, _middle(measured.floors))]
    costs.append(_cost(_middle(measured.floors_before).cpu, tasks))
    ratios = {
        "vs_kubernetes_job": ratio(ours.middle, job.middle),
        "vs_floor": ratio(ours.middle, bare.middle),
        "vs_floor_before": ratio(ours.middle, before.middle),
    }
    if all(costs):
        ratios["api_cost_vs_before"] = ratio(costs[0][_API_SERVER], costs[2][_API_SERVER])
    return Outcome(
        bench="throughput",
        figures={name: value.middle for name, value in spread.items()},
        ratios=ratios,
        spread=spread,
        details=_cpu(costs, report),
    )


_Timed = TypeVar("_Timed", Round, FloorRound)


def _middle(rounds: Sequence[_Timed]) -> _Timed:
    return sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2]


def _cost(cpu: dict[str, float] | None, tasks: int) -> dict[str, float]:
    """Return the milliseconds a Task by process; empty when they are not to be seen."""
    return {name: significant(1000 * value / tasks, 3) for name, value in (cpu or {}).items()}


def _cpu(costs: Sequence[dict[str, float]], report: Report) -> dict[str, Any]:
    if not all(costs):
        report.say("CPU time by process: the node's processes are not to be seen from here")
        return {}
    report.table(
        "CPU time by process, ms a Task (median rounds)",
        ["process", "Tasks", "floor", "floor of 0829e12"],
        [
            *((name, *(cost.get(name, 0.0) for cost in costs)) for name in costs[0]),
            ("all", *(significant(sum(cost.values()), 3) for cost in costs)),
        ],
    )
    names = ("cpu_ms_per_task", "floor_cpu_ms_per_task", "floor_before_cpu_ms_per_task")
    return dict(zip(names, costs, strict=True))


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "throughput",
        _run_command,
        help="Measure Tasks a second, from the first create to the last end.",
    )
    add_number(parser, "--tasks", 2000, "Tasks of a round")
    add_number(parser, "--rounds", 3, "rounds")
    add_load(parser)
    add_number(parser, "--jobs", 30, "completions of a round's Job")
    add_number(parser, "--operators", 1, "operators: one leads, the others stand by")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(
        tasks=options.tasks,
        job_completions=options.jobs,
        rounds=options.rounds,
        workers=options.workers,
        concurrency=options.concurrency,
        clients=options.clients,
    )
    if options.quick:
        settings = replace(settings, tasks=min(options.tasks, 200), job_completions=4, rounds=1)
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        clients=options.clients,
        stage=partial(operated, operators=options.operators),
    )
