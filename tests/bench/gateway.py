"""Submitting Tasks over HTTP: through a gateway of this checkout, and at the API server itself.

Both create the same objects with as many requests in flight, in turn, from this process and with
the same user. The gateway is a process of its own on this machine, as on a desk. A round's Tasks
are deleted before the next begins. No operator need run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import orjson

from taskqueue.api.common import API_VERSION
from taskqueue.cli.arguments import CommandParsers
from tests.bench.cluster import HANDLER, NAMESPACE, QUEUE, Cluster, delete
from tests.bench.command_line import (
    CLIENTS,
    add_benchmark,
    add_number,
    broker_only,
    measure_cluster,
)
from tests.bench.deadline import BenchError
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio
from tests.bench.task_load import TASKS, task_body

_START_SECONDS = 120.0
_GONE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        tasks: of a round.
        rounds: of each, in turn.
        clients: requests in flight at once.
    """

    tasks: int
    rounds: int
    clients: int


async def run(cluster: Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure both in turns, and report."""
    over_http: list[float] = []
    direct: list[float] = []
    async with (
        _namespace(cluster),
        _gateway(cluster) as url,
        _session(settings.clients) as session,
    ):

        async def submit(name: str) -> None:
            spec = {"queue": QUEUE, "handler": HANDLER, "payload": {"name": name}}
            body = orjson.dumps({"metadata": {"name": name}, "spec": spec})
            await _post(session, f"{url}/v1/namespaces/{NAMESPACE}/tasks", body)

        async def create(name: str) -> None:
            await cluster.load.send("POST", TASKS, body=task_body(name, API_VERSION))

        for number in range(settings.rounds + 1):
            pair = []
            for kind, one in (("g", submit), ("a", create)):
                pair.append(await _rate(one, f"{kind}{number}", settings))
                await cluster.client.request("DELETE", TASKS)
            if number:  # the first is for connections and caches
                over_http.append(pair[0])
                direct.append(pair[1])
            report.say(f"round {number}: gateway {pair[0]:.0f}/s, API server {pair[1]:.0f}/s")
    ratios = [ratio(one, other) for one, other in zip(over_http, direct, strict=True)]
    spread = {
        "gateway_per_second": Spread.of(over_http),
        "api_create_per_second": Spread.of(direct),
        "vs_api_create": Spread.of(ratios),
    }
    report.spreads("Tasks created a second; ratios of the rounds", spread)
    return Outcome(
        bench="gateway",
        figures={name: s.middle for name, s in spread.items() if not name.startswith("vs_")},
        ratios={name: s.middle for name, s in spread.items() if name.startswith("vs_")},
        spread=spread,
    )


async def _rate(one: Callable[[str], Awaitable[None]], prefix: str, settings: Settings) -> float:
    """Return Tasks created a second."""
    names = iter([f"{prefix}-{number}" for number in range(settings.tasks)])

    async def client() -> None:
        for name in names:
            await one(name)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(settings.clients):
            group.create_task(client())
    return settings.tasks / (time.perf_counter() - start)


@asynccontextmanager
async def _namespace(cluster: Cluster) -> AsyncIterator[None]:
    """Make the namespace, with nothing in it: the Tasks stay Pending."""
    metadata = {"name": NAMESPACE, "labels": {"taskqueue.dev/bench": "true"}}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    await cluster.client.request("POST", "/api/v1/namespaces", body=body)
    try:
        yield
    finally:
        path = f"/api/v1/namespaces/{NAMESPACE}"
        await delete(cluster.client, path, wait_seconds=_GONE_SECONDS)


@asynccontextmanager
async def _session(clients: int) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=clients)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with session.post(url, data=body, headers=headers) as answer:
        text = await answer.text()
        if answer.status != 201:
            raise BenchError(f"the gateway has answered {answer.status}: {text[:500]}")


@asynccontextmanager
async def _gateway(cluster: Cluster) -> AsyncIterator[str]:
    """Run a gateway, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "TASKQUEUE_GATEWAY_PORT": str(port),
        "TASKQUEUE_GATEWAY_REQUESTS_PER_SECOND": "1000000",
        "TASKQUEUE_GATEWAY_BURST": "1000000",
        "TASKQUEUE_GATEWAY_DRAIN_SECONDS": "0.1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskqueue", "gateway"),
        *("--kubeconfig", str(cluster.kubeconfig)),
        env={**os.environ, **settings},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await _until_ready(url, process)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + _START_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and process.returncode is None:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise BenchError("the gateway has not started: its words are above")


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "gateway",
        _run_command,
        help="Measure Tasks a second that are created over HTTP, and at the API server.",
    )
    add_number(parser, "--tasks", 2000, "Tasks of a round")
    add_number(parser, "--rounds", 5, "rounds of each")
    add_number(parser, "--clients", CLIENTS, "creates in flight at once")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(tasks=options.tasks, rounds=options.rounds, clients=options.clients)
    if options.quick:
        settings = replace(settings, tasks=min(options.tasks, 200), rounds=1)
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        clients=options.clients,
        stage=broker_only,
    )
