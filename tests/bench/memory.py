"""Memory of a Task that waits in the operator, without a cluster.

The real informer, codec, machine and dispatcher take Tasks from a stand-in for the API server: of
three, one is in the dispatch queue, one waits for its startAfter and one for the Task before it; or
all wait for those that follow them by name, which is the order in which a start shows them.
Their payloads are not kept (`taskqueue.limits.PAYLOAD_CACHE_BYTES` bounds what they cost). What
counts is how much the process has grown, statuses written and everything at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
import tracemalloc
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import orjson
import uvloop

from taskqueue.cli.arguments import CommandParsers
from taskqueue.controller.tasks.read_pool import Spawn
from taskqueue.controller.tasks.task_controller import TaskController, TaskListener
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.informer import Informer
from taskqueue.kubernetes.status_updater import OnResult, StatusUpdater, Written
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.model.queue import QueueConfig
from taskqueue.model.token import TokenKeys
from tests.bench import waiting
from tests.bench.cluster import bench_namespace
from tests.bench.command_line import (
    add_benchmark,
    add_load,
    add_number,
    measure_cluster,
    measure_here,
)
from tests.bench.deadline import BenchError
from tests.bench.report import Outcome, Report

_NAMESPACE, _QUEUE = "bench", "work"
_PAYLOAD = {"text": "x" * 10_000}
#: Tasks that come before the measurement: modules, caches, the first arenas.
_WARM_UP = 300
#: Unfinished statuses are written when they are two seconds old.
_REST_SECONDS = 3.0
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        tasks: how many wait.
        dependencies: how many of the following ones each depends on; 0: as the module says.
        trace: print which lines have allocated the memory.
    """

    tasks: int
    dependencies: int = 0
    trace: bool = False


class _Api:
    """Lists Tasks as the API server does, writes statuses, and has nothing else."""

    def __init__(self, tasks: int, dependencies: int) -> None:
        self._tasks = tasks
        self._dependencies = dependencies

    async def send(self, method: str, path: str, *, params: dict[str, str], **more: Any) -> bytes:
        await asyncio.sleep(0.001)
        begin = int(params.get("continue", "0"))
        end = min(begin + int(params["limit"]), self._tasks)
        metadata = {"resourceVersion": "1", "continue": str(end) if end < self._tasks else ""}
        items = [_task(number, self._needs(number)) for number in range(begin, end)]
        return orjson.dumps({"items": items, "metadata": metadata})

    def _needs(self, number: int) -> range:
        if self._dependencies:
            return range(number + 1, min(number + 1 + self._dependencies, self._tasks))
        return range(number - 2, number - 1) if number % 3 == 2 else range(0)

    async def request(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        await asyncio.sleep(0.002)
        raise ApiError(404, "NotFound", path)


class _Updater:
    """Writes every status at once."""

    clogged: frozenset[str] = frozenset()

    def put(self, path: str, body: bytes, on_result: OnResult, *, urgent: bool = False) -> None:
        asyncio.get_running_loop().call_soon(on_result, Written(1, 123_456_789))


def _task(number: int, needs: range) -> dict[str, Any]:
    """Return a Task as the API server writes it."""
    spec: dict[str, Any] = {"queue": _QUEUE, "handler": "resize", "payload": _PAYLOAD}
    if needs:
        spec["dependsOn"] = [_name(one) for one in needs]
    elif number % 3 == 1:
        spec["startAfter"] = f"2099-01-01T00:00:00.{number:06}Z"
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "Task",
        "metadata": {
            "name": _name(number),
            "namespace": _NAMESPACE,
            "uid": f"5d0c8a52-6d5f-4f6e-9a59-{number:012}",
            "resourceVersion": str(100_000_000 + number),
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl-create", "operation": "Update"}],
        },
        "spec": spec,
        "status": {"phase": "Pending", "observedGeneration": -1},
    }


def _name(number: int) -> str:
    return f"a-task-of-usual-length-{number:06}"


async def run(settings: Settings, report: Report) -> Outcome:
    """Measure how much memory a waiting Task takes.

    Raises:
        BenchError: the operator's parts do not hold all the Tasks.
    """
    background: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        background.add(task)
        task.add_done_callback(background.discard)
        return task

    await _hold(_WARM_UP, spawn)
    gc.collect()
    if settings.trace:
        tracemalloc.start()
    before = _resident_bytes()
    lags: list[float] = []
    lag = spawn(_watch_lag(lags), "lag of the loop")
    held = await _hold(settings.tasks, spawn, settings.dependencies)
    lag.cancel()
    gc.collect()
    grown = _resident_bytes() - before
    if settings.trace:
        for line in tracemalloc.take_snapshot().statistics("lineno")[:25]:
            report.say(f"{line.size / settings.tasks:6.0f} bytes a Task: {line.traceback}")
    bytes_per_task = round(grown / settings.tasks)
    report.say(f"{len(held[0].tasks)} Tasks wait, and take {bytes_per_task} bytes each")
    return Outcome(
        bench="memory",
        figures={
            "bytes_per_task": bytes_per_task,
            "longest_turn_ms": 1000 * max(lags),
            "tasks": settings.tasks,
        },
        ratios={},
    )


async def _hold(count: int, spawn: Spawn, dependencies: int = 0) -> tuple[TaskController, Informer]:
    """Return what holds so many Tasks, all at rest."""
    listener = SimpleNamespace(
        on_completion_published=None, on_commands_owed=None, on_status_refused=None
    )
    api = cast(ApiClient, _Api(count, dependencies))
    tasks = TaskController(
        client=api,
        updater=cast(StatusUpdater, _Updater()),
        tokens=TokenKeys(current="k", keys={"k": b"secret"}),
        listener=cast(TaskListener, listener),
        uid_of=lambda key: informer.uid_of(key),
        synced=lambda: True,
        leads=lambda: True,
        random=Random(0),
        spawn=spawn,
        payload_budget=0,
    )
    informer = Informer(api, TASKS_PATH, tasks)
    key = (_NAMESPACE, _QUEUE)
    tasks.dispatcher(key).config = QueueConfig(
        namespace=_NAMESPACE, name=_QUEUE, uid="q", generation=1, connection_secret="rabbit"
    )
    await informer._list()
    await asyncio.sleep(_REST_SECONDS)
    while tasks.dependencies.is_searching:  # noqa: ASYNC110  (a bench may look)
        await asyncio.sleep(0.1)
    if len(tasks.tasks) != count:
        raise BenchError(f"{len(tasks.tasks)} of {count} Tasks are held: the bench is wrong")
    return tasks, informer


async def _watch_lag(lags: list[float]) -> None:
    """Note how much CPU time goes between two turns that a timer gets; others do not disturb it."""
    while True:
        begun = time.thread_time()
        await asyncio.sleep(0.001)
        lags.append(time.thread_time() - begun)


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * _PAGE_BYTES


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "memory",
        _run_command,
        help="Measure the memory of the operators while many Tasks of 10 kB wait; with "
        "--synthetic of the operator's parts only.",
    )
    add_number(parser, "--tasks", 100_000, "Tasks that wait")
    add_load(parser)
    add_number(parser, "--synthetic", None, "Tasks, made up: it needs no cluster")
    add_number(
        parser,
        "--dependencies",
        0,
        "Tasks each depends on, that follow it; 0: a third depends on one",
        minimum=0,
    )
    parser.add_argument("--trace", action="store_true", help="print what has allocated the memory")


def _run_command(options: argparse.Namespace) -> int:
    if options.synthetic is None:
        held = waiting.Settings(
            tasks=min(options.tasks, 300) if options.quick else options.tasks,
            workers=options.workers,
            concurrency=options.concurrency,
            clients=options.clients,
        )
        return measure_cluster(
            options,
            lambda target, report: waiting.run(target, held, report),
            clients=options.clients,
            stage=bench_namespace,
        )
    settings = Settings(
        tasks=options.synthetic, dependencies=options.dependencies, trace=options.trace
    )
    if options.quick:
        settings = replace(settings, tasks=min(options.synthetic, 300))
    return measure_here(lambda report: run(settings, report), uvloop.new_event_loop)
