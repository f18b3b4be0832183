"""Items a second of one TaskBatch, from its create to its end, and what that takes.

In the same run: two worker processes with direct messages alone, as `bench worker` measures them,
and an indexed Job. While the batch runs the size of its object and the memory of the operator are
looked at every second, and single Tasks beside it are timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from taskqueue.api.common import API_VERSION, TASK_KIND, TASKBATCH_KIND
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.batch_codec import batch_path
from tests.bench import cluster, jobs, processes, worker
from tests.bench.brokers import bench_broker
from tests.bench.cluster import NAMESPACE, QUEUE, Cluster
from tests.bench.command_line import add_benchmark, add_number, measure_cluster
from tests.bench.deadline import BenchError
from tests.bench.peers.peer import OURS, ours
from tests.bench.report import Outcome, Report
from tests.bench.statistics import ratio
from tests.bench.task_load import TASKS

_BATCHES = batch_path(NAMESPACE, "")
_NAME = "batch"
_ENDS = ("Succeeded", "Failed", "Cancelled")
_LOOK_SECONDS = 0.25
#: Slower than anybody, in items a second.
_SLOWEST = 100
#: From one Task beside the batch to the next, and from one look at it to the next.
_TASK_SECONDS, _TASK_LOOK_SECONDS = 2.0, 0.02
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        items: of the batch.
        messages: direct ones, of a round of the workers alone.
        rounds: of the workers alone.
        workers: pods, and processes of the workers alone.
        concurrency: items a worker runs at once.
        job_completions: of the indexed Job.
    """

    items: int
    messages: int
    rounds: int
    workers: int
    concurrency: int
    job_completions: int


@dataclass(slots=True)
class Seen:
    """What was seen of a batch while it ran.

    Attributes:
        sizes: bytes of its object as JSON.
        rss: of the operator, in MB.
        task_seconds: of single Tasks beside it, from create to end.
    """

    sizes: list[int] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    task_seconds: list[float] = field(default_factory=list)


def add_command(benchmarks: CommandParsers) -> None:
    """Add the command of this benchmark."""
    parser = add_benchmark(
        benchmarks,
        "batch",
        _command,
        help="Measure items a second of one TaskBatch, from its create to its end.",
    )
    add_number(parser, "--items", 100_000, "items of the TaskBatch")
    add_number(parser, "--messages", 15_000, "direct messages of a round of the workers alone")
    add_number(parser, "--rounds", 3, "rounds of the workers alone")
    add_number(parser, "--workers", 2, "worker pods, and processes of the workers alone")
    add_number(parser, "--concurrency", 2, "what a worker runs at once")
    add_number(parser, "--jobs", 30, "completions of the Job")


def _command(options: argparse.Namespace) -> int:
    settings = Settings(
        items=options.items,
        messages=options.messages,
        rounds=options.rounds,
        workers=options.workers,
        concurrency=options.concurrency,
        job_completions=options.jobs,
    )
    if options.quick:
        settings = replace(settings, items=2000, messages=2000, rounds=1, job_completions=4)
    return measure_cluster(options, lambda target, report: run(target, settings, report))


async def run(target: Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure the peers, then the batch."""
    alone = await _workers_alone(target, settings, report)
    job = settings.job_completions / await jobs.measure(
        target, "indexed", completions=settings.job_completions, deadline=300
    )
    report.say(f"indexed Job: {job:.2f} pods/s")
    scaling = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
    await cluster.apply_queue(target.client, scaling=scaling, concurrency=settings.concurrency)
    await cluster.workers_ready(target.client, settings.workers)
    await _timed_batch(target, "warm-up", max(settings.items // 50, 100), Seen())
    seen = Seen()
    before = _operator_mb()
    seconds = await _timed_batch(target, _NAME, settings.items, seen)
    rate = settings.items / seconds
    report.say(f"TaskBatch: {rate:.0f} items/s")
    growth = max(seen.rss, default=before) - before
    figures = {
        "items_per_second": rate,
        "worker_per_second": alone,
        "job_per_second": job,
        "largest_object_bytes": float(max(seen.sizes, default=0)),
        "operator_rss_growth_mb": growth,
    }
    if seen.task_seconds:
        figures["task_beside_p50_seconds"] = median(seen.task_seconds)
        figures["task_beside_max_seconds"] = max(seen.task_seconds)
    return Outcome(
        bench="batch",
        figures=figures,
        ratios={"vs_worker": ratio(rate, alone), "vs_indexed_job": ratio(rate, job)},
        details={"items": settings.items},
    )


async def _workers_alone(target: Cluster, settings: Settings, report: Report) -> float:
    peer = ours(OURS, "noop", processes=settings.workers, slots=settings.concurrency)
    rates = []
    async with bench_broker(target.client) as broker:
        for _ in range(settings.rounds):
            one = await worker.measure(peer, broker, settings.messages, host=target.host)
            rates.append(one.rate)
            report.say(f"workers alone: {one.rate:.0f} direct messages/s")
    return median(rates)


async def _timed_batch(target: Cluster, name: str, items: int, seen: Seen) -> float:
    """Run a batch, and return the seconds from its create to its end.

    Raises:
        BenchError: not all items have succeeded.
    """
    start = time.perf_counter()
    await target.load.request("POST", _BATCHES.rstrip("/"), body=_batch(name, items))
    beside = asyncio.create_task(_tasks_beside(target, name, seen))
    try:
        async with asyncio.timeout(60 + items / _SLOWEST):
            status = await _ended(target, name, seen)
    except TimeoutError:
        raise BenchError(f"the TaskBatch of {items} items has not ended in time") from None
    finally:
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
    seconds = time.perf_counter() - start
    if (status["phase"], status.get("succeeded", 0)) != ("Succeeded", items):
        raise BenchError(f"the TaskBatch has ended otherwise: {json.dumps(status)}")
    await cluster.delete(target.client, batch_path(NAMESPACE, name), wait_seconds=30)
    return seconds


async def _ended(target: Cluster, name: str, seen: Seen) -> dict[str, Any]:
    path = batch_path(NAMESPACE, name)
    while True:
        found = await target.client.get(path)
        seen.sizes.append(len(json.dumps(found)))
        seen.rss.append(_operator_mb())
        status: dict[str, Any] = found["status"]
        if status["phase"] in _ENDS:
            return status
        await asyncio.sleep(_LOOK_SECONDS)


async def _tasks_beside(target: Cluster, name: str, seen: Seen) -> None:
    """Create a Task every few seconds, and time it."""
    for number in range(1_000):
        await asyncio.sleep(_TASK_SECONDS)
        task = f"{name}-beside-{number}"
        body = {
            "apiVersion": API_VERSION,
            "kind": TASK_KIND,
            "metadata": {"name": task, "namespace": NAMESPACE},
            "spec": {"queue": QUEUE, "handler": "noop"},
        }
        start = time.perf_counter()
        await target.load.request("POST", TASKS, body=body)
        while not await _has_ended(target, task):  # noqa: ASYNC110 - the API server is polled
            await asyncio.sleep(_TASK_LOOK_SECONDS)
        seen.task_seconds.append(time.perf_counter() - start)


async def _has_ended(target: Cluster, task: str) -> bool:
    found = await target.client.get(f"{TASKS}/{task}")
    return bool(found["status"]["phase"] in _ENDS)


def _batch(name: str, items: int) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": TASKBATCH_KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"queue": QUEUE, "count": items, "template": {"spec": {"handler": "noop"}}},
    }


def _operator_mb() -> float:
    """Return the resident memory of the largest operator process; 0.0: none is to be seen."""
    return max((_resident_mb(pid) for pid in _operators()), default=0.0)


def _operators() -> Sequence[int]:
    return processes.of_kind("operator")


def _resident_mb(pid: int) -> float:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
