"""Throughput: many Tasks at once on warm workers, from the first create to the last end seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskqueue.api.common import GROUP
from tests.bench import api_metrics, cluster, floor, jobs, processes
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


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        tasks: of a round, and objects of the floor.
        job_completions: of a round's Job.
        rounds: how often all three are measured, in turn.
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
class Floor:
    """One round of the floor."""

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


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report."""
    scaling = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
    await cluster.apply_queue(target.client, scaling=scaling, concurrency=settings.concurrency)
    await cluster.workers_ready(target.client, settings.workers)
    report.say(
        f"{settings.workers} workers with {settings.concurrency} slots are ready; "
        f"{settings.clients} creates at once"
    )
    await _tasks(target, "warm-up", min(_WARM_UP_TASKS, settings.tasks), settings.clients)
    floors, rounds, job_seconds = [], [], []
    async with floor.floor_resource(target.client):
        for number in range(settings.rounds):
            names = _names(f"floor-{number}", settings.tasks)
            floors.append(await _floor(target, names, settings.clients))
            await cluster.delete_all(target.client, floor.COPIES)
            report.say(f"round {number}: floor {settings.tasks / floors[-1].seconds:.1f} tasks/s")
            await cluster.delete_all(target.client, TASKS)
            rounds.append(await _tasks(target, f"r{number}", settings.tasks, settings.clients))
            report.say(f"round {number}: Tasks {_describe(rounds[-1], settings.tasks)}")
            completions = settings.job_completions
            job_seconds.append(
                await jobs.measure(
                    target, f"job-{number}", completions=completions, deadline=60 + 10 * completions
                )
            )
            report.say(f"round {number}: Job {completions / job_seconds[-1]:.2f} tasks/s")
    return _report(settings, floors, rounds, job_seconds, report)


async def _floor(target: cluster.Cluster, names: Sequence[str], clients: int) -> Floor:
    before = processes.sample(target.host)
    seconds = await floor.measure(target, names, clients=clients)
    return Floor(seconds, _cpu_between(before, processes.sample(target.host)))


async def _tasks(target: cluster.Cluster, prefix: str, count: int, clients: int) -> Round:
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


def _report(
    settings: Settings,
    floors: Sequence[Floor],
    rounds: Sequence[Round],
    job_seconds: Sequence[float],
    report: Report,
) -> Outcome:
    ours = Spread.of([settings.tasks / one.seconds for one in rounds])
    bare = Spread.of([settings.tasks / one.seconds for one in floors])
    job = Spread.of([settings.job_completions / seconds for seconds in job_seconds])
    per_task = Spread.of(
        [
            (api_metrics.of_resource(one.writes, GROUP, "tasks") - settings.tasks) / settings.tasks
            for one in rounds
        ]
    )
    spread = {
        "tasks_per_second": ours,
        "floor_tasks_per_second": bare,
        "kubernetes_job_tasks_per_second": job,
        "api_writes_per_task": per_task,
    }
    report.spreads("throughput, tasks/s", spread)
    middle = sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2]
    middle_floor = sorted(floors, key=lambda one: one.seconds)[len(floors) // 2]
    report.table(
        "writes the API server took during a round (median round)",
        ["resource", "writes"],
        [(str(key), count) for key, count in middle.writes.most_common(_SHOWN_RESOURCES)],
    )
    return Outcome(
        bench="throughput",
        figures={name: value.middle for name, value in spread.items()},
        ratios={
            "vs_kubernetes_job": ratio(ours.middle, job.middle),
            "vs_floor": ratio(ours.middle, bare.middle),
        },
        spread=spread,
        details=_cpu(middle, middle_floor, settings.tasks, report),
    )


def _cpu(one: Round, bare: Floor, tasks: int, report: Report) -> dict[str, Any]:
    if one.cpu is None or bare.cpu is None:
        report.say("CPU time by process: the node's processes are not to be seen from here")
        return {}
    ours, theirs = (
        {name: significant(1000 * value / tasks, 3) for name, value in cpu.items()}
        for cpu in (one.cpu, bare.cpu)
    )
    report.table(
        "CPU time by process, ms a Task (median rounds)",
        ["process", "Tasks", "floor"],
        [
            *((name, value, theirs.get(name, 0.0)) for name, value in ours.items()),
            ("all", sum(ours.values()), sum(theirs.values())),
        ],
    )
    return {"cpu_ms_per_task": ours, "floor_cpu_ms_per_task": theirs}
