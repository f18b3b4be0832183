"""The cost of an archive: throughput of one TaskQueue with and without, in turn.

PostgreSQL is Debian's, as a process of this machine, so it takes its part of the same cores. Rows
that are still to be written when the last Task ends are waited for, and counted: an archive that
loses or repeats a row has no figure.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from taskqueue.archive.archive import Archive
from taskqueue.archive.errors import ArchiveError
from taskqueue.archive.history import HistoryFilter
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.taskqueue_codec import queue_path
from tests.bench import cluster
from tests.bench.deadline import BenchError, until
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio
from tests.bench.task_load import TASKS
from tests.bench.throughput import measure_tasks
from tests.bench.with_and_without import Settings, add_with_and_without
from tests.integration.results.servers import PostgresqlServer

_SECRET = "archive"
_WARM_UP_TASKS = 200
_ROWS_SECONDS = 60


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report.

    Raises:
        BenchError: a row is missing, or there are too many.
    """
    async with _database(target) as server:
        scaling = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
        await cluster.apply_queue(target.client, scaling=scaling, concurrency=settings.concurrency)
        await cluster.workers_ready(target.client, settings.workers)
        archive = Archive(server.connection())
        try:
            return await _measure(target, settings, report, archive)
        finally:
            await archive.close()


async def _measure(
    target: cluster.Cluster, settings: Settings, report: Report, archive: Archive
) -> Outcome:
    rates: dict[bool, list[float]] = {True: [], False: []}
    lags: list[float] = []
    await measure_tasks(target, "warm-up", _WARM_UP_TASKS, settings.clients)
    for number in range(settings.rounds):
        # The later of two is measured on what the first has left: each is that in turn.
        for is_archived in (False, True) if number % 2 else (True, False):
            await cluster.delete_all(target.client, TASKS)
            await _set_archive(target, is_archived)
            name = f"{'with' if is_archived else 'without'}-{number}"
            one = await measure_tasks(target, name, settings.tasks, settings.clients)
            rates[is_archived].append(settings.tasks / one.seconds)
            text = f"round {number}, {name}: {rates[is_archived][-1]:.1f} tasks/s"
            if is_archived:
                lags.append(await _all_rows(archive, f"{name}-", settings.tasks))
                text += f", and all rows {lags[-1]:.2f} s after the last end"
            report.say(text)
    return _report(rates, lags, report)


def _report(rates: dict[bool, list[float]], lags: Sequence[float], report: Report) -> Outcome:
    spread = {
        "tasks_per_second": Spread.of(rates[True]),
        "tasks_per_second_without": Spread.of(rates[False]),
        "row_lag_seconds": Spread.of(list(lags)),
    }
    report.spreads("an archive", spread)
    return Outcome(
        bench="archive",
        figures={name: value.middle for name, value in spread.items()},
        ratios={
            "vs_without": ratio(
                spread["tasks_per_second"].middle, spread["tasks_per_second_without"].middle
            )
        },
        spread=spread,
    )


@asynccontextmanager
async def _database(target: cluster.Cluster) -> AsyncIterator[PostgresqlServer]:
    """A PostgreSQL that pods can reach, and a Secret that says where."""
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresqlServer(Path(folder), facing(target.host, target.access.base_url))
        await asyncio.to_thread(_prepare, server)
        await asyncio.to_thread(server.start)
        try:
            path = f"/api/v1/namespaces/{cluster.NAMESPACE}/secrets"
            body = {"metadata": {"name": _SECRET}, "stringData": {"uri": server.connection().uri}}
            await target.client.request("POST", path, body=body)
            yield server
        finally:
            server.kill()


def _prepare(server: PostgresqlServer) -> None:
    server.folder.chmod(0o755)
    server.prepare()


def facing(host: str, url: str) -> str:
    """Return the address of this machine that faces the cluster, which pods can reach."""
    with socket.create_connection((host, urlsplit(url).port or 443), timeout=10) as connection:
        address: str = connection.getsockname()[0]
    return address


async def _set_archive(target: cluster.Cluster, is_archived: bool) -> None:
    path = queue_path((cluster.NAMESPACE, cluster.QUEUE))
    archive = {"connectionSecret": {"name": _SECRET}} if is_archived else None
    changed = await target.client.merge(path, {"spec": {"archive": archive}})
    generation = changed["metadata"]["generation"]

    async def is_settled() -> bool:
        raw = await target.client.get(path)
        status = raw.get("status") or {}
        found = {one["type"]: one["status"] for one in status.get("conditions") or ()}
        is_seen = status.get("observedGeneration") == generation
        return is_seen and found.get("ArchiveConnected") == ("True" if is_archived else None)

    await until(is_settled, seconds=60, what=f"the archive is {'on' if is_archived else 'off'}")


async def _all_rows(archive: Archive, prefix: str, count: int) -> float:
    """Return how long it takes from now until all Tasks of a round have a row."""
    wanted = HistoryFilter(namespace=cluster.NAMESPACE, queue=cluster.QUEUE)
    begin = time.perf_counter()
    found = 0

    async def is_complete() -> bool:
        nonlocal found
        try:
            rows = await archive.read(wanted, rows=count + 1)
        except ArchiveError as error:
            raise BenchError(str(error)) from error
        found = sum(row.name.startswith(prefix) for row in rows)
        return found >= count

    await until(is_complete, seconds=_ROWS_SECONDS, what=f"{count} rows of {prefix}")
    if found != count:
        raise BenchError(f"{found} rows of {count} Tasks")
    return time.perf_counter() - begin


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    add_with_and_without(
        benchmarks,
        "archive",
        run,
        help="Measure Tasks a second of a TaskQueue with an archive, and without, in turn.",
    )
