"""Memory of the operators, as shipped, while many Tasks wait on a cluster.

Of three Tasks of 10 kB, one is held with its TaskQueue, one waits for its startAfter and one for
another Task. Both operators are deleted at once while all wait. Then all Tasks run to their end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from taskqueue.api.common import API_VERSION, TASK_KIND
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.kubernetes.taskqueue_codec import queue_path
from tests.bench import cluster, processes
from tests.bench.deadline import BenchError, until
from tests.bench.load import at_once
from tests.bench.operators import OPERATOR_NAMESPACE, leader, operator_pods
from tests.bench.report import Outcome, Report
from tests.bench.statistics import significant
from tests.bench.task_load import TASKS

_QUEUE = "waiting"
_GATE = "gate"
_PAYLOAD = {"text": "x" * 10_000}
_METRICS_PORT = 8080
_CREATED_A_SECOND = 60
_BEFORE_START_SECONDS = 300
_REST_SECONDS = 300
_SYNC_SECONDS = 600
_ENDED_A_SECOND = 25
_SAMPLE_SECONDS = 0.25
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        tasks: how many wait; a multiple of three.
        workers: that run them in the end.
        concurrency: Tasks each runs at once.
        clients: creates under way at once.
    """

    tasks: int
    workers: int
    concurrency: int
    clients: int


@dataclass
class _Memory:
    """What the operators use, in bytes.

    Attributes:
        peaks: resident memory of its own that each has had, by process id.
        container_peaks: what its container has had, as its cgroup counts: with files and the
            kernel's part.
    """

    peaks: dict[int, int] = field(default_factory=dict)
    container_peaks: dict[int, int] = field(default_factory=dict)

    def read(self) -> dict[int, int]:
        """Return what each operator has resident now: memory of its own, not of files."""
        found = {}
        for pid in processes.of_kind("operator"):
            try:
                found[pid] = _own_bytes(pid)
                self.container_peaks[pid] = _container_peak(pid)
            except OSError:
                continue  # it has ended meanwhile
        for pid, used in found.items():
            self.peaks[pid] = max(self.peaks.get(pid, 0), used)
        return found

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    async def watch(self) -> None:
        """Read again and again, until cancelled."""
        while True:
            self.read()
            await asyncio.sleep(_SAMPLE_SECONDS)


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report.

    Raises:
        BenchError: not all wait, not all end, or an operator was started again by the kubelet.
    """
    pool = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
    await cluster.apply_queue(target.client, scaling=pool, concurrency=1)
    await cluster.apply_queue(
        target.client,
        name=_QUEUE,
        scaling=pool,
        concurrency=settings.concurrency,
        stopPolicy="Hold",
    )
    await cluster.workers_ready(target.client, settings.workers)
    memory = _Memory()
    idle = memory.read()
    if not idle:
        raise BenchError("the operators' processes are not to be seen from here")
    async with _watching(memory):
        return await _measure(target, settings, report, memory, idle=max(idle.values()))


async def _measure(
    target: cluster.Cluster, settings: Settings, report: Report, memory: _Memory, *, idle: int
) -> Outcome:
    begun = time.monotonic()
    patience = settings.tasks / _CREATED_A_SECOND + _BEFORE_START_SECONDS
    start_after = datetime.now(UTC) + timedelta(seconds=patience)
    await _create(target, settings, start_after)
    created = time.monotonic() - begun
    report.say(f"{settings.tasks} Tasks are created: {settings.tasks / created:.0f}/s")
    await _at_rest(target, settings.tasks + 1)
    waiting = memory.read()
    report.say(f"all wait; the operators use {_in_mb(waiting)} MB")

    await _probe(target, "before")
    seconds = await _restart(target)
    report.say(f"both operators are replaced: a Task has run to its end after {seconds:.1f} s")
    await _at_rest(target, settings.tasks + 1)
    restarted = memory.read()
    peak = memory.peak
    report.say(
        f"all wait again; the operators use {_in_mb(restarted)} MB, {peak / _MB:.0f} at most"
    )
    if datetime.now(UTC) >= start_after:
        raise BenchError("startAfter has come before all was measured: the machine is too slow")

    begun = time.monotonic()
    await _release(target)
    await _all_ended(target, settings.tasks + 1, report)
    await _no_kubelet_restart(target)
    return Outcome(
        bench="memory",
        figures={
            "rss_mb_waiting": significant(max(waiting.values()) / _MB),
            "rss_mb_after_restart": significant(max(restarted.values()) / _MB),
            "rss_mb_peak": significant(peak / _MB),
            "bytes_per_task": round((max(waiting.values()) - idle) / settings.tasks),
            "seconds_to_synced": significant(seconds),
        },
        ratios={},
        details={
            "tasks": settings.tasks,
            "created_per_second": significant(settings.tasks / created),
            "seconds_to_end": significant(time.monotonic() - begun),
            "rss_mb_idle": significant(idle / _MB),
            "rss_mb_peak_to_end": significant(memory.peak / _MB),
            "cgroup_mb_peak_to_end": significant(
                max(memory.container_peaks.values(), default=0) / _MB
            ),
        },
    )


@asynccontextmanager
async def _watching(memory: _Memory) -> AsyncIterator[None]:
    watching = asyncio.create_task(memory.watch())
    try:
        yield
    finally:
        watching.cancel()


async def _create(target: cluster.Cluster, settings: Settings, start_after: datetime) -> None:
    await target.load.request("POST", TASKS, body=_task(_GATE, suspend=True))
    due = start_after.strftime("%Y-%m-%dT%H:%M:%SZ")
    waits: list[dict[str, Any]] = [{}, {"startAfter": due}, {"dependsOn": [_GATE]}]

    async def create(number: str) -> None:
        body = _task(f"a-task-of-usual-length-{number}", **waits[int(number) % 3])
        await target.load.request("POST", TASKS, body=body)

    numbers = (f"{number:06}" for number in range(settings.tasks))
    await at_once(settings.clients, numbers, create)


def _task(name: str, *, queue: str = _QUEUE, **spec: Any) -> bytes:
    return orjson.dumps(
        {
            "apiVersion": API_VERSION,
            "kind": TASK_KIND,
            "metadata": {"name": name, "namespace": cluster.NAMESPACE},
            "spec": {"queue": queue, "handler": cluster.HANDLER, "payload": _PAYLOAD, **spec},
        }
    )


async def _at_rest(target: cluster.Cluster, count: int) -> None:
    """Wait until the leader holds all Tasks, and everything that is known is written."""

    async def rests() -> bool:
        metrics = await _metrics(target)
        held = metrics.get("taskqueue_tasks_held")
        return held == count and metrics.get("taskqueue_statuses_pending") == 0

    await until(rests, seconds=_REST_SECONDS, what=f"the operator holding {count} Tasks at rest")


async def _metrics(target: cluster.Cluster) -> dict[str, float]:
    """Return the leader's metrics without labels; nothing where it does not answer."""
    pod = await leader(target.client)
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod}:{_METRICS_PORT}/proxy/metrics"
    try:
        text = (await target.client.send("GET", path, accept="text/plain")).decode()
    except ApiError:
        return {}
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and "{" not in line[0]}


async def _probe(target: cluster.Cluster, name: str) -> float:
    """Have one Task run in the other TaskQueue; return how many seconds it took."""
    begun = time.monotonic()
    path = task_path(cluster.NAMESPACE, f"probe-{name}")
    await target.client.request("POST", TASKS, body=_task(f"probe-{name}", queue=cluster.QUEUE))

    async def succeeded() -> bool:
        status = (await target.client.get(path)).get("status") or {}
        return status.get("phase") == "Succeeded"

    await until(succeeded, seconds=_SYNC_SECONDS, what=f"Task probe-{name} succeeding")
    return time.monotonic() - begun


async def _restart(target: cluster.Cluster) -> float:
    """Delete both operators at once; return the seconds until a Task has run under new ones."""
    pods = [pod["metadata"]["name"] for pod in await operator_pods(target.client)]
    for pod in pods:
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod}"
        await target.client.request("DELETE", path)
    return await _probe(target, "after")


async def _release(target: cluster.Cluster) -> None:
    gate = task_path(cluster.NAMESPACE, _GATE)
    await target.client.merge(gate, {"spec": {"suspend": False}})
    queue = queue_path((cluster.NAMESPACE, _QUEUE))
    await target.client.merge(queue, {"spec": {"stopPolicy": "None"}})


async def _all_ended(target: cluster.Cluster, count: int, report: Report) -> None:
    """Wait until so many Tasks have succeeded.

    Raises:
        BenchError: one has not, or it takes too long.
    """
    path = queue_path((cluster.NAMESPACE, _QUEUE))
    shown = time.monotonic()

    async def ended() -> bool:
        nonlocal shown
        totals = ((await target.client.get(path)).get("status") or {}).get("totals") or {}
        if totals.get("failed") or totals.get("cancelled"):
            raise BenchError(f"not all have succeeded: {totals}")
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            report.say(f"{totals.get('succeeded', 0)} of {count} have succeeded")
        return bool(totals.get("succeeded", 0) >= count)

    await until(ended, seconds=_REST_SECONDS + count / _ENDED_A_SECOND, what="all Tasks ending")


async def _no_kubelet_restart(target: cluster.Cluster) -> None:
    for pod in await operator_pods(target.client):
        for state in pod["status"].get("containerStatuses") or ():
            if state["restartCount"]:
                raise BenchError(f"{pod['metadata']['name']} was restarted: {state['lastState']}")


def _own_bytes(pid: int) -> int:
    """Return a process's resident memory that is not of files."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return 1024 * int(found["RssAnon"].split()[0])


def _container_peak(pid: int) -> int:
    """Return the most memory that the cgroup of a process has had; 0: it does not say."""
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        base = Path("/sys/fs/cgroup", "memory" if controllers else "")
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if controllers in ("", "memory") and (found := base / path.strip("/") / name).exists():
                return int(found.read_text(encoding="ascii"))
    return 0


def _in_mb(used: dict[int, int]) -> str:
    return " and ".join(f"{one / _MB:.0f}" for one in sorted(used.values(), reverse=True))
