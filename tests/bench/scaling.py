"""Scaling: from zero to the first end, through 200 Tasks, and down again under long ones.

Three parts, one after the other, on one TaskQueue whose workers have one slot:

1. *zero to done*: no pod left, one Task, from its create to Complete seen;
2. *drain*: from zero, 200 Tasks of 1 s, 5 per replica, at most 10 workers: from the first create to
   the last end seen, then until no pod is left;
3. *shrink*: with the default scaling settings a burst of short Tasks brings 10 workers; Tasks of
   60 s then arrive one by one, with another burst in their middle, until the pool is at zero.

In the last two every pod that was removed is looked at: see `tests.bench.removals`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from taskqueue.api.common import API_VERSION, TASK_KIND, TASKQUEUE_KIND
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.taskqueue_codec import QUEUE_LABEL, queue_path
from tests.bench import cluster, recorded, removals
from tests.bench.command_line import add_benchmark, add_number, measure_cluster
from tests.bench.deadline import within
from tests.bench.load import at_once
from tests.bench.pod_watch import PodWatch
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio
from tests.bench.task_load import TASKS
from tests.bench.watches import EndWatch

WORKERS = f"{QUEUE_LABEL}={cluster.QUEUE}"

MOST_WORKERS = 10
TASKS_PER_REPLICA = 5
#: Of the first two parts, so that a round need not wait a minute for the next one's zero.
SHORTENED = {
    "minReplicas": 0,
    "maxReplicas": MOST_WORKERS,
    "target": {"tasksPerReplica": TASKS_PER_REPLICA},
    "idleSecondsBeforeZero": 3,
    "scaleDown": {"stabilizationWindowSeconds": 3},
}
#: What the API server fills in is the default.
DEFAULT: Mapping[str, Any] = {}

#: Measured when this project was designed, on a node like the development cluster's; KEDA is not
#: run here. See docs/development/benchmarks.md.
CITED = {
    "keda_2.16.1": {
        "measured_in_this_run": False,
        "zero_to_done_seconds": {"default": 13.4, "polling every second": 1.15},
        "drain_seconds": [48, 50],
        "busy_part_of_pods_removed": [0.55, 0.67],
        "tasks_killed": [6, 38],
    }
}

_PODS = f"/api/v1/namespaces/{cluster.NAMESPACE}/pods"
#: For what a part leaves behind: pods being stopped, their sandboxes.
_SETTLE_SECONDS = 2.0
_CLIENTS = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: of zero to done.
        drains: rounds of the drain.
        drain_tasks: Tasks of 1 s in a drain.
        burst_tasks: short Tasks of a burst.
        bursts: 1 or 2; the second comes in the middle of the long Tasks.
        long_tasks: that arrive while the pool shrinks.
        long_seconds: how long each runs.
        arrival_seconds: between two of them.
        default_scaling: of the shrink; otherwise `SHORTENED`.
    """

    rounds: int = 5
    drains: int = 3
    drain_tasks: int = 200
    burst_tasks: int = 60
    bursts: int = 2
    long_tasks: int = 20
    long_seconds: float = 60
    arrival_seconds: float = 6
    default_scaling: bool = True

    @property
    def limit_seconds(self) -> float:
        """How long the whole may take; with the defaults 570 s, some 100 s above the usual."""
        return 40 + 12 * self.rounds + 50 * self.drains + self.shrink_limit_seconds

    @property
    def shrink_limit_seconds(self) -> float:
        """How long the shrink may take: bursts and arrivals, what is left, a minute idle."""
        return 80 + self.long_tasks * self.arrival_seconds + 2 * self.long_seconds

    @property
    def drain_floor_seconds(self) -> float:
        """What the workers that the target asks for need when they are there at once."""
        wanted = math.ceil(self.drain_tasks / TASKS_PER_REPLICA)
        return self.drain_tasks / min(wanted, MOST_WORKERS)


QUICK = Settings(
    rounds=1,
    drains=1,
    drain_tasks=40,
    burst_tasks=20,
    bursts=1,
    long_tasks=4,
    long_seconds=10,
    arrival_seconds=3,
    default_scaling=False,
)


@dataclass(frozen=True, slots=True)
class Drain:
    """A round of the drain, in seconds: to the last end, and from there to no pod left."""

    seconds: float
    back_to_zero: float
    losses: Losses


@dataclass(frozen=True, slots=True)
class Losses:
    """What became of pods and runs, counted from the outside; names of pods, and of Tasks.

    Attributes:
        removed: pods.
        busy: removed pods that were busy, by the handlers' record or by the Tasks' statuses.
        killed: Tasks of which a run never ended.
        repeated: Tasks that were run, or begun, more than once.
        killed_containers: containers that ended by SIGKILL.
        restarts: of containers in their pods.
        most: workers at a time.
    """

    removed: frozenset[str]
    busy: frozenset[str]
    killed: frozenset[str]
    repeated: frozenset[str]
    killed_containers: int
    restarts: int
    most: int

    def as_dict(self) -> dict[str, int]:
        """Return the numbers as they are printed."""
        return {
            "most_workers": self.most,
            "pods_removed": len(self.removed),
            "busy_pods_removed": len(self.busy),
            "tasks_killed": len(self.killed),
            "tasks_run_twice": len(self.repeated),
            "containers_killed": self.killed_containers,
            "containers_restarted": self.restarts,
        }


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report.

    Raises:
        BenchError: a Task failed, or it takes longer than `Settings.limit_seconds`.
    """
    async with within(settings.limit_seconds, "the scaling benchmark"):
        await recorded.prepare(target)
        await _apply_queue(target, SHORTENED)
        zero = []
        for number in range(settings.rounds):
            zero.append(await _zero_to_done(target, f"zero-{number}"))
            report.say(f"round {number}: first Task done {zero[-1]:.2f} s after its create")
        drains = []
        for number in range(settings.drains):
            drains.append(await _drain(target, f"drain-{number}", settings.drain_tasks))
            one = drains[-1]
            report.say(
                f"round {number}: {settings.drain_tasks} Tasks of 1 s in {one.seconds:.2f} s, "
                f"then no pod left after {one.back_to_zero:.2f} s (idle settings shortened)"
            )
        await _apply_queue(target, DEFAULT if settings.default_scaling else SHORTENED)
        started = time.perf_counter()
        shrink = await _shrink(target, settings, report)
        report.say(f"the shrink took {time.perf_counter() - started:.0f} s")
    return _report(settings, zero, drains, shrink, report)


async def _zero_to_done(target: cluster.Cluster, name: str) -> float:
    await _at_zero(target)
    async with EndWatch(target.watcher, TASKS) as watch:
        start = time.perf_counter()
        await _create(target, name, "noop")
        seen = await watch.all_ended([name], seconds=120)
    return seen[name] - start


async def _drain(target: cluster.Cluster, prefix: str, tasks: int) -> Drain:
    await _at_zero(target)
    names = [f"{prefix}-{index:03}" for index in range(tasks)]
    async with (
        PodWatch(target.watcher, _PODS, selector=WORKERS) as pods,
        EndWatch(target.watcher, TASKS) as watch,
    ):
        start = time.perf_counter()
        await at_once(_CLIENTS, names, lambda name: _create(target, name, "nap", seconds=1))
        seen = await watch.all_ended(names, seconds=60 + tasks)
        last = max(seen.values())
        await cluster.no_pods(target.client, WORKERS)
        empty = time.perf_counter()
        losses = await _losses(target, pods, names, runs=())
    return Drain(last - start, empty - last, losses)


async def _shrink(target: cluster.Cluster, settings: Settings, report: Report) -> Losses:
    await _at_zero(target)
    bursts = [
        [f"burst-{number}-{index:03}" for index in range(settings.burst_tasks)]
        for number in range(settings.bursts)
    ]
    arrivals = [f"long-{index:03}" for index in range(settings.long_tasks)]
    names = [name for burst in bursts for name in burst] + arrivals

    async def burst(number: int) -> None:
        await at_once(
            _CLIENTS,
            bursts[number],
            lambda name: _create(target, name, "recorded", seconds=2),
        )

    async with (
        PodWatch(target.watcher, _PODS, selector=WORKERS) as pods,
        EndWatch(target.watcher, TASKS) as watch,
    ):
        await burst(0)
        await watch.all_ended(bursts[0], seconds=120)
        report.say(
            f"shrink: {pods.most} workers; a Task of {settings.long_seconds:g} s each "
            f"{settings.arrival_seconds:g} s from now on"
        )
        for index, name in enumerate(arrivals):
            if index == len(arrivals) // 2 and len(bursts) > 1:
                report.say(f"shrink: {len(pods.removals)} pods removed so far; second burst")
                await burst(1)
            await _create(target, name, "recorded", seconds=settings.long_seconds)
            await asyncio.sleep(settings.arrival_seconds)
        await watch.all_ended(names, seconds=settings.shrink_limit_seconds)
        report.say(f"shrink: all have ended, {len(pods.removals)} pods removed so far")
        await cluster.no_pods(target.client, WORKERS)
        runs = await recorded.read_runs(target)
        return await _losses(target, pods, names, runs=runs)


async def _losses(
    target: cluster.Cluster,
    pods: PodWatch,
    names: Sequence[str],
    *,
    runs: Sequence[removals.Run],
) -> Losses:
    ours = set(names)
    listed = await target.client.get(TASKS)
    tasks = [task for task in listed["items"] if task["metadata"]["name"] in ours]
    in_status = removals.runs_in_status(tasks)
    return Losses(
        removed=frozenset(removal.pod for removal in pods.removals),
        busy=removals.busy_pods(pods.removals, runs) | removals.busy_pods(pods.removals, in_status),
        killed=removals.killed(runs),
        repeated=removals.repeated(runs) | removals.repeated_in_status(tasks),
        killed_containers=pods.killed_containers,
        restarts=pods.restarts,
        most=pods.most,
    )


def _report(
    settings: Settings,
    zero: Sequence[float],
    drains: Sequence[Drain],
    shrink: Losses,
    report: Report,
) -> Outcome:
    spread = {
        "zero_to_done_seconds": Spread.of(zero),
        "drain_seconds": Spread.of([one.seconds for one in drains]),
        "back_to_zero_seconds": Spread.of([one.back_to_zero for one in drains]),
    }
    report.spreads("scaling, s", spread)
    counted = {
        **{f"drain {number}": one.losses.as_dict() for number, one in enumerate(drains)},
        "shrink": shrink.as_dict(),
    }
    report.table(
        "pods and runs, counted from the outside",
        ["", *counted],
        [(what, *(row[what] for row in counted.values())) for what in shrink.as_dict()],
    )
    report.say(f"cited, not measured in this run: {CITED}")
    everywhere = [one.losses for one in drains] + [shrink]
    figures = {
        **{name: value.middle for name, value in spread.items()},
        "pods_removed": sum(len(one.removed) for one in everywhere),
        "busy_pods_removed": sum(len(one.busy) for one in everywhere),
        # Released and run again, or killed: either way its start was wasted.
        "tasks_killed": sum(len(one.killed | one.repeated) for one in everywhere),
    }
    return Outcome(
        bench="scaling",
        figures=figures,
        ratios={
            "drain_vs_ideal": ratio(figures["drain_seconds"], settings.drain_floor_seconds),
        },
        spread=spread,
        details={
            "counted": counted,
            "scaling": {
                "zero_to_done": SHORTENED,
                "drain": SHORTENED,
                "shrink": "defaults" if settings.default_scaling else SHORTENED,
            },
            "cited": CITED,
        },
    )


async def _at_zero(target: cluster.Cluster) -> None:
    await cluster.no_pods(target.client, WORKERS)
    await asyncio.sleep(_SETTLE_SECONDS)
    await cluster.no_pods(target.client, WORKERS)


async def _create(target: cluster.Cluster, name: str, handler: str, **payload: float) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": TASK_KIND,
        "metadata": {"name": name, "namespace": cluster.NAMESPACE},
        "spec": {"queue": cluster.QUEUE, "handler": handler, "payload": payload},
    }
    await target.load.request("POST", TASKS, body=orjson.dumps(body))


async def _apply_queue(target: cluster.Cluster, scaling: Mapping[str, Any]) -> None:
    """Put the TaskQueue in place; how pods end is the operator's default."""
    worker = {
        "name": "worker",
        "image": cluster.IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["worker", recorded.MODULE],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8081}, "periodSeconds": 1},
        "volumeMounts": [{"name": "handlers", "mountPath": "/handlers"}],
    }
    volume = {"name": "handlers", "configMap": {"name": recorded.CONFIG_MAP}}
    template = {"spec": {"containers": [worker], "volumes": [volume]}}
    await target.client.apply(
        queue_path((cluster.NAMESPACE, cluster.QUEUE)),
        {
            "apiVersion": API_VERSION,
            "kind": TASKQUEUE_KIND,
            "metadata": {"name": cluster.QUEUE, "namespace": cluster.NAMESPACE},
            "spec": {
                "broker": {"connectionSecret": {"name": "rabbit"}},
                "workers": {"template": template, "concurrency": 1},
                "scaling": dict(scaling),
            },
        },
        manager=cluster.MANAGER,
    )


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "scaling",
        _run_command,
        help="Measure the pool from zero, through 200 Tasks, and shrinking under long ones: 8 "
        "minutes.",
    )
    add_number(parser, "--rounds", 5, "rounds of one Task from zero")
    add_number(parser, "--drains", 3, "rounds of 200 Tasks from zero")


def _run_command(options: argparse.Namespace) -> int:
    settings = QUICK if options.quick else Settings(rounds=options.rounds, drains=options.drains)
    return measure_cluster(options, lambda target, report: run(target, settings, report))
