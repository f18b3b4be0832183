"""Takeovers: from the loss of the leading operator to the next dispatch by another one.

A Task comes every tenth of a second, before, during and after; its handler notes when it begins.
The leader is killed (`kill -9` of its process), stopped (SIGTERM) or paused (SIGSTOP, SIGCONT), and
the end of the longest pause in the dispatches after that is what counts. What the handler noted
also shows what ran twice, and the watch of the statuses whether anything was written after an end.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import orjson

from taskqueue.api.common import API_VERSION, TASK_KIND, TASKQUEUE_KIND
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.kubernetes.taskqueue_codec import queue_path
from tests.bench import cluster
from tests.bench.command_line import add_benchmark, add_number, measure_cluster
from tests.bench.deadline import BenchError, until
from tests.bench.load import at_once
from tests.bench.operators import Operators
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, significant
from tests.bench.task_load import TASKS
from tests.bench.watches import TOUCHED_TASKS, EndWatch, ended

Way = Literal["killed", "stopped", "paused"]
WAYS: tuple[Way, ...] = get_args(Way)

#: The most Tasks of a queue that are published at once when so few end.
WINDOW = 64
_WAITING_QUEUE = "waiting"
_WAITING_PAYLOAD = {"text": "x" * 10_000}
_CLIENTS = 8
_BETWEEN_TASKS_SECONDS = 0.1
_LOAD_BEFORE_SECONDS = 1.5
#: The load goes on for this long after another operator leads, or the pause has ended.
_LOAD_AFTER_SECONDS = 3.0
_TAKEOVER_SECONDS = 60
_ENDS_SECONDS = 120
_BACKLOG_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: of each way to lose the leader.
        waiting: Tasks of 10 kB that wait meanwhile, in a TaskQueue without workers.
        paused_seconds: how long a leader is paused.
        ways: to lose it.
    """

    rounds: int
    waiting: int
    paused_seconds: float
    ways: Sequence[Way] = WAYS


@dataclass(frozen=True, slots=True)
class Takeover:
    """What a loss of the leader cost.

    Attributes:
        seconds: to the next dispatch.
        run_twice: runs beyond one of each Task.
        written_late: versions of Tasks that came after their ends.
    """

    seconds: float
    run_twice: int
    written_late: int


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report.

    Raises:
        BenchError: a Task was lost, ran twice beyond the window, or was changed after its end.
    """
    await cluster.apply_queue(
        target.client, scaling={"minReplicas": 1, "maxReplicas": 1}, concurrency=4
    )
    await cluster.workers_ready(target.client, 1)
    operators = await Operators.open(target)
    async with _waiting_tasks(target, settings.waiting, report):
        taken: dict[Way, list[Takeover]] = {way: [] for way in settings.ways}
        for number in range(settings.rounds):
            for way in settings.ways:
                one = await _round(target, operators, way, f"{way}-{number}", settings)
                taken[way].append(one)
                report.say(
                    f"round {number}, {way}: {one.seconds:.2f} s to the next dispatch, "
                    f"{one.run_twice} run twice"
                )
    return _report(settings, taken, report)


def seconds_to_next_dispatch(lost: float, begun: Collection[float]) -> float:
    """Return how long after a loss the longest pause in what has begun ended.

    Args:
        lost: when the leader was lost.
        begun: when runs began, before and after.

    Raises:
        BenchError: none has after the loss.
    """
    times = [lost, *sorted(one for one in begun if one > lost)]
    if len(times) == 1:
        raise BenchError("no Task has begun after the leader was lost: see the operators' logs")
    _, after = max((later - earlier, later) for earlier, later in pairwise(times))
    return after - lost


@dataclass
class _Load:
    """Creates a Task every now and then, and knows what became of each."""

    target: cluster.Cluster
    prefix: str
    created: list[str] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    written_late: int = 0

    async def create(self) -> None:
        """Create Tasks until cancelled."""
        due = time.monotonic()
        while True:
            name = f"{self.prefix}-{len(self.created):05}"
            await self.target.load.request("POST", TASKS, body=_task(name, "counted"))
            self.created.append(name)
            due += _BETWEEN_TASKS_SECONDS
            await asyncio.sleep(due - time.monotonic())

    def note(self, raw: Mapping[str, Any]) -> str | None:
        """Take note of a version; return as `tests.bench.watches.ended` does."""
        name, status = raw["metadata"]["name"], raw["status"]
        if name in self.final:
            self.written_late += self.final[name] != status
        elif ended(raw) is not None:
            self.final[name] = status
            if status["attempts"] != 1:
                return f"{status['attempts']} attempts: {status.get('message', '')}"
        return ended(raw)


async def _round(
    target: cluster.Cluster, operators: Operators, way: Way, prefix: str, settings: Settings
) -> Takeover:
    leader = await operators.settled()
    load = _Load(target, prefix)
    async with EndWatch(
        target.watcher, TASKS, selectors=TOUCHED_TASKS, is_ended=load.note
    ) as watch:
        creating = asyncio.create_task(load.create())
        try:
            await asyncio.sleep(_LOAD_BEFORE_SECONDS)
            lost = await _lose(operators, leader, way, settings)
            await asyncio.sleep(_LOAD_AFTER_SECONDS)
        finally:
            creating.cancel()
            await asyncio.wait({creating})
        if not creating.cancelled():
            creating.result()
        await watch.all_ended(load.created, seconds=_ENDS_SECONDS)
        begun = await _begun(target, prefix)
    run_twice = sum(Counter(name for name, _ in begun).values()) - len(load.created)
    if run_twice > WINDOW or load.written_late:
        raise BenchError(
            f"{prefix}: {run_twice} Tasks ran twice, of at most {WINDOW}; {load.written_late} "
            "writes came after a Task's end"
        )
    await operators.replace(leader)
    seconds = seconds_to_next_dispatch(lost, [at for _, at in begun])
    return Takeover(seconds, run_twice, load.written_late)


async def _lose(operators: Operators, leader: str, way: Way, settings: Settings) -> float:
    """Lose the leader; return when that was, once another operator leads."""
    if way == "paused":
        async with operators.paused(leader) as lost:
            await operators.led_by_another(leader, seconds=_TAKEOVER_SECONDS)
            await asyncio.sleep(max(lost + settings.paused_seconds - time.time(), 0))
        return lost
    lost = await operators.signal(leader, "SIGKILL" if way == "killed" else "SIGTERM")
    await operators.led_by_another(leader, seconds=_TAKEOVER_SECONDS)
    return lost


async def _begun(target: cluster.Cluster, prefix: str) -> list[tuple[str, float]]:
    """Return (Task, when) of each run of the load: one more Task of that worker says so."""
    name = f"runs-of-{prefix}"
    path = task_path(cluster.NAMESPACE, name)
    body = _task(name, "runs", prefix=f"{prefix}-")
    await target.client.request("POST", TASKS, body=body)

    async def is_done() -> bool:
        return ended(await target.client.get(path)) is not None

    await until(is_done, seconds=_ENDS_SECONDS, what=f"Task {name} ending")
    status = (await target.client.get(path))["status"]
    if "result" not in status:
        raise BenchError(f"Task {name}: {status.get('message', 'no result')}")
    return [(f"{prefix}-{number}", at) for number, at in status["result"]["runs"]]


@asynccontextmanager
async def _waiting_tasks(
    target: cluster.Cluster, count: int, report: Report
) -> AsyncIterator[None]:
    """Have Tasks wait in the operator while the block runs."""
    if not count:
        yield
        return
    path = queue_path((cluster.NAMESPACE, _WAITING_QUEUE))
    body = {
        "apiVersion": API_VERSION,
        "kind": TASKQUEUE_KIND,
        "metadata": {"name": _WAITING_QUEUE, "namespace": cluster.NAMESPACE},
        "spec": {
            "broker": {"connectionSecret": {"name": "rabbit"}},
            "deletionPolicy": "Delete",
        },
    }
    await target.client.apply(path, body, manager=cluster.MANAGER)

    async def create(name: str) -> None:
        task = _task(name, "counted", queue=_WAITING_QUEUE, **_WAITING_PAYLOAD)
        await target.load.request("POST", TASKS, body=task)

    async def is_known() -> bool:
        queue = await target.client.get(path)
        backlog: int = (queue.get("status") or {}).get("backlog", 0)
        return backlog >= count

    try:
        await at_once(_CLIENTS, [f"waiting-{number:06}" for number in range(count)], create)
        await until(is_known, seconds=_BACKLOG_SECONDS, what=f"{count} Tasks waiting")
        report.say(f"{count} Tasks of 10 kB wait")
        yield
    finally:
        await cluster.delete(target.client, path, wait_seconds=120)


def _task(name: str, handler: str, *, queue: str = cluster.QUEUE, **payload: Any) -> bytes:
    return orjson.dumps(
        {
            "apiVersion": API_VERSION,
            "kind": TASK_KIND,
            "metadata": {"name": name, "namespace": cluster.NAMESPACE},
            "spec": {"queue": queue, "handler": handler, "payload": {"name": name, **payload}},
        }
    )


def _report(settings: Settings, taken: Mapping[Way, Sequence[Takeover]], report: Report) -> Outcome:
    spread = {
        f"{way}_seconds": Spread.of([one.seconds for one in all]) for way, all in taken.items()
    }
    report.spreads("from the loss of the leader to the next dispatch, s", spread)
    all_values = {
        f"{way}_seconds": [significant(one.seconds) for one in all] for way, all in taken.items()
    }
    run_twice = {way: [one.run_twice for one in all] for way, all in taken.items()}
    return Outcome(
        bench="failover",
        figures={name: value.middle for name, value in spread.items()},
        ratios={},
        spread=spread,
        details={
            "all": all_values,
            "run_twice": run_twice,
            "written_late": sum(one.written_late for all in taken.values() for one in all),
            "waiting": settings.waiting,
            "paused_for_seconds": settings.paused_seconds,
        },
    )


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "failover",
        _run_command,
        help="Measure the time from the loss of the leading operator to the next dispatch.",
    )
    add_number(parser, "--rounds", 5, "losses of each kind")
    add_number(parser, "--waiting", 0, "Tasks of 10 kB that wait meanwhile", minimum=0)
    add_number(parser, "--paused-seconds", 25, "how long a leader is paused")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="(default: all)")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(
        rounds=1 if options.quick else options.rounds,
        waiting=options.waiting,
        paused_seconds=options.paused_seconds,
        ways=options.ways,
    )
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        stage=cluster.bench_namespace,
    )
