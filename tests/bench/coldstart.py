"""Cold start: one Task for a queue without a worker, from its create to Complete seen."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.client import MERGE_PATCH
from taskqueue.kubernetes.taskqueue_codec import QUEUE_LABEL
from tests.bench import cluster, jobs
from tests.bench.command_line import add_benchmark, add_number, measure_cluster
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio
from tests.bench.task_load import TASKS, create_task
from tests.bench.watches import TOUCHED_TASKS, EndWatch, available

#: For what a measurement leaves behind: pods being stopped, their sandboxes.
_SETTLE_SECONDS = 2.0
_DEADLINE = 120
_DEPLOYMENTS = f"/apis/apps/v1/namespaces/{cluster.NAMESPACE}/deployments"
_BARE = "bare"


@dataclass(frozen=True, slots=True)
class Settings:
    """How often it is measured."""

    rounds: int


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report."""
    await cluster.apply_queue(
        target.client,
        scaling={
            "minReplicas": 0,
            "maxReplicas": 1,
            "idleSecondsBeforeZero": 1,
            "scaleDown": {"stabilizationWindowSeconds": 0},
        },
        concurrency=1,
    )
    await _create_bare_deployment(target)
    ours, pods, job = [], [], []
    for number in range(settings.rounds):
        pods.append(await _bare_pod(target))
        ours.append(await _task(target, f"cold-{number}"))
        job.append(await jobs.measure(target, f"job-{number}", deadline=_DEADLINE))
        report.say(
            f"round {number}: Task {ours[-1]:.2f} s, pod available {pods[-1]:.2f} s, "
            f"Job {job[-1]:.2f} s"
        )
        await asyncio.sleep(_SETTLE_SECONDS)
    spread = {
        "seconds_to_complete": Spread.of(ours),
        "seconds_to_pod_available": Spread.of(pods),
        "kubernetes_job_seconds": Spread.of(job),
    }
    report.spreads("from nothing, s", spread)
    figures = {name: value.middle for name, value in spread.items()}
    mine = figures["seconds_to_complete"]
    return Outcome(
        bench="coldstart",
        figures=figures,
        ratios={
            "vs_kubernetes_job": ratio(mine, figures["kubernetes_job_seconds"]),
            "vs_pod_available": ratio(mine, figures["seconds_to_pod_available"]),
        },
        spread=spread,
        details={"rounds": {"seconds_to_complete": [round(value, 3) for value in ours]}},
    )


async def _task(target: cluster.Cluster, name: str) -> float:
    workers = f"{QUEUE_LABEL}={cluster.QUEUE}"
    await cluster.no_pods(target.client, workers)
    await asyncio.sleep(_SETTLE_SECONDS)
    await cluster.no_pods(target.client, workers)
    async with EndWatch(target.watcher, TASKS, selectors=TOUCHED_TASKS) as watch:
        start = time.perf_counter()
        await create_task(target, name)
        seen = await watch.all_ended([name], seconds=_DEADLINE)
    return seen[name] - start


async def _create_bare_deployment(target: cluster.Cluster) -> None:
    """A pod of the same image that only sleeps: what Kubernetes itself needs to start one."""
    labels = {"app": _BARE}
    pod = {
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "sleep",
                "image": cluster.IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
            }
        ],
    }
    body = {
        "metadata": {"name": _BARE},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    await target.client.request("POST", _DEPLOYMENTS, body=body)


async def _bare_pod(target: cluster.Cluster) -> float:
    await asyncio.sleep(_SETTLE_SECONDS)
    async with EndWatch(target.watcher, _DEPLOYMENTS, is_ended=available) as watch:
        start = time.perf_counter()
        await _scale(target, 1)
        seen = await watch.all_ended([_BARE], seconds=_DEADLINE)
    await _scale(target, 0)
    await cluster.no_pods(target.client, f"app={_BARE}")
    return seen[_BARE] - start


async def _scale(target: cluster.Cluster, replicas: int) -> None:
    await target.load.request(
        "PATCH",
        f"{_DEPLOYMENTS}/{_BARE}/scale",
        body={"spec": {"replicas": replicas}},
        content_type=MERGE_PATCH,
    )


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "coldstart",
        _run_command,
        help="Measure one Task for a queue at zero workers, from create to Complete.",
    )
    add_number(parser, "--rounds", 5, "rounds")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(rounds=1 if options.quick else options.rounds)
    return measure_cluster(options, lambda target, report: run(target, settings, report))
