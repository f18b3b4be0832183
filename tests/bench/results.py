"""Results in a store that is killed twice: each Task's result is read back and compared.

A result is made from the Task's name, so that whoever reads it knows what it has to be.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from taskqueue.api.common import API_VERSION, TASK_KIND
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.pages import list_pages
from taskqueue.results.connection import open_store
from taskqueue.results.patience import patiently
from tests.bench import cluster
from tests.bench.command_line import add_benchmark, add_load, add_number, measure_cluster
from tests.bench.deadline import BenchError
from tests.bench.load import at_once
from tests.bench.report import Outcome, Report
from tests.bench.task_load import TASKS
from tests.bench.watches import TOUCHED_TASKS, EndWatch
from tests.integration.results.servers import (
    KINDS,
    Server,
    address_towards,
    running,
    secret_of,
)

STORES = tuple(KINDS)

_HANDLERS = """\
import hashlib

from taskqueue import task


@task
def bulky(payload):
    return {"text": hashlib.shake_128(payload["name"].encode()).hexdigest(payload["bytes"] // 2)}
"""
_READERS = 16
#: Slower than this by far, and the benchmark gives up: Tasks a second.
_SLOWEST = 5
_SETTLE_SECONDS = 60
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is stored.

    Attributes:
        tasks: for each store.
        size: of a result, in bytes.
        stores: kinds of them, one after the other.
        kills: how often each is killed.
        away_seconds: how long it is away each time.
        workers: pods.
        concurrency: Tasks each runs at once.
        clients: creates under way at once.
    """

    tasks: int
    size: int
    stores: Sequence[str]
    kills: int
    away_seconds: float
    workers: int
    concurrency: int
    clients: int


@dataclass(frozen=True, slots=True)
class Round:
    """What one store did: Tasks ended and results read, a second."""

    tasks_per_second: float
    reads_per_second: float


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Store, kill, read back and report.

    Raises:
        BenchError: a Task failed, or a result is not what it has to be.
    """
    path = f"/api/v1/namespaces/{cluster.NAMESPACE}/configmaps/handlers"
    body = {"data": {"bench_handlers.py": _HANDLERS}}
    await target.client.merge(path, body)
    host = address_towards(target.host)
    rounds: dict[str, Round] = {}
    for kind in settings.stores:
        with running(kind, host) as server:
            rounds[kind] = await _round(target, server, settings, report)
        one = rounds[kind]
        report.say(
            f"{kind}: {settings.tasks} results of {settings.size} bytes are there and equal, after "
            f"{settings.kills} kills; {one.tasks_per_second:.1f} Tasks/s, "
            f"{one.reads_per_second:.0f} reads/s"
        )
        await cluster.delete_all(target.client, TASKS)
    figures = {f"{kind}_tasks_per_second": one.tasks_per_second for kind, one in rounds.items()}
    figures |= {f"{kind}_reads_per_second": one.reads_per_second for kind, one in rounds.items()}
    details = {"tasks": settings.tasks, "bytes": settings.size, "kills": settings.kills}
    return Outcome("results", figures, {}, details=details)


async def _round(
    target: cluster.Cluster, server: Server, settings: Settings, report: Report
) -> Round:
    secret = f"results-{server.kind}"
    await _put_secret(target, secret, server)
    await cluster.apply_queue(
        target.client,
        scaling={"minReplicas": settings.workers, "maxReplicas": settings.workers},
        concurrency=settings.concurrency,
        results={"store": {"connectionSecret": {"name": secret}}, "retentionSeconds": 86_400},
    )
    await cluster.workers_ready(target.client, settings.workers)
    report.say(f"{server.kind}: {settings.workers} workers are ready")
    names = [f"{server.kind}-{number:06}" for number in range(settings.tasks)]
    async with EndWatch(target.watcher, TASKS, selectors=TOUCHED_TASKS) as watch:
        begun = time.perf_counter()
        killer = asyncio.create_task(_kill(server, settings, lambda: watch.count, report))
        try:
            await at_once(
                settings.clients, names, lambda name: _create(target, name, settings.size)
            )
            seen = await watch.all_ended(names, seconds=120 + settings.tasks / _SLOWEST)
            await asyncio.wait_for(killer, _SETTLE_SECONDS)
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
    seconds = max(seen.values()) - begun
    begun = time.perf_counter()
    await _read_all(target, server, settings)
    return Round(settings.tasks / seconds, settings.tasks / (time.perf_counter() - begun))


async def _put_secret(target: cluster.Cluster, name: str, server: Server) -> None:
    keys = secret_of(server.connection())
    data = {key: base64.b64encode(text.encode()).decode() for key, text in keys.items()}
    path = f"/api/v1/namespaces/{cluster.NAMESPACE}/secrets"
    await target.client.request("POST", path, body={"metadata": {"name": name}, "data": data})


async def _create(target: cluster.Cluster, name: str, size: int) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": TASK_KIND,
        "metadata": {"name": name, "namespace": cluster.NAMESPACE},
        "spec": {
            "queue": cluster.QUEUE,
            "handler": "bulky",
            "payload": {"name": name, "bytes": size},
        },
    }
    await target.load.request("POST", TASKS, body=orjson.dumps(body))


async def _kill(
    server: Server, settings: Settings, ended: Callable[[], int], report: Report
) -> None:
    """Kill the store each time another part of the Tasks has ended, and start it again."""
    for number in range(1, settings.kills + 1):
        while ended() < settings.tasks * number // (settings.kills + 1):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        report.say(f"{server.kind}: killed after {ended()} Tasks")
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(settings.away_seconds)
        await asyncio.to_thread(server.start)


async def _read_all(target: cluster.Cluster, server: Server, settings: Settings) -> None:
    """Read each Task's result, and compare it with what its status and its name say.

    Raises:
        BenchError: one is not there, or another one.
    """
    store = open_store(server.connection())
    references: dict[str, dict[str, Any]] = {}
    async for page in list_pages(target.client, TASKS):
        for raw in page.content["items"]:
            status = raw["status"]
            if status["phase"] != "Succeeded" or "resultRef" not in status:
                raise BenchError(f"Task {raw['metadata']['name']} has no result: {status}")
            references[raw["metadata"]["name"]] = status["resultRef"]
    if len(references) != settings.tasks:
        raise BenchError(f"{len(references)} Tasks of {settings.tasks} are there")

    async def read(name: str) -> None:
        reference = references[name]
        found = await patiently(partial(store.get, reference["key"]), reference["key"], seconds=30)
        text = hashlib.shake_128(name.encode()).hexdigest(settings.size // 2)
        if (
            found is None
            or hashlib.sha256(found.body).hexdigest() != reference["sha256"]
            or orjson.loads(found.body) != {"text": text}
        ):
            raise BenchError(f"the result of Task {name} is not what it returned: {reference}")

    try:
        await at_once(_READERS, references, read)
    finally:
        await store.close()


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "results",
        _run_command,
        help="Keep large results in each kind of store while it is killed, and read all of them.",
    )
    add_number(parser, "--tasks", 10_000, "Tasks for each store")
    add_number(parser, "--bytes", 100_000, "size of a result", minimum=20_000)
    add_number(parser, "--kills", 2, "how often each store is killed", minimum=0)
    add_number(parser, "--away-seconds", 5, "how long it is away each time")
    add_load(parser)
    parser.add_argument(
        "--stores", nargs="+", choices=STORES, default=STORES, help="(default: all)"
    )


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(
        tasks=min(options.tasks, 200) if options.quick else options.tasks,
        size=options.bytes,
        stores=options.stores,
        kills=options.kills,
        away_seconds=options.away_seconds,
        workers=options.workers,
        concurrency=options.concurrency,
        clients=options.clients,
    )
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        clients=options.clients,
        stage=cluster.bench_namespace,
    )
