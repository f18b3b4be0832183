"""``python -m tests.faults.archived``: every end of a Task has one row, whatever is killed.

Tasks with a time to live of some seconds end in every way, a fifth of them without a worker, and
some are deleted before they end, while the operator and PostgreSQL are killed at random. Then the
rows are compared with what an independent watch of the Tasks has seen: each once, and equal. A
second TaskQueue, whose archive is away all the time, must hold up nothing.

The operator of the cluster is replaced by this checkout's. Exit code 1: a row is missing, is there
without a Task, or differs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from devcluster import images
from devcluster.cluster import open_cluster
from devcluster.paths import DEFAULT_NAME, KUBECONFIG
from taskqueue.archive.archive import Archive
from taskqueue.archive.history import MOST_ROWS, HistoryFilter, Place
from taskqueue.archive.rows import ArchivedTask
from tests.commits import sources
from tests.e2e.api import Refused
from tests.e2e.harness import OPERATOR_NAMESPACE, TEMPLATE, Harness
from tests.faults.archive_record import Seen, TaskRecord
from tests.faults.install import install
from tests.faults.rows.site import Installation
from tests.integration.results.servers import PostgresqlServer

_IMAGE = f"taskqueue-operator:faults-{DEFAULT_NAME}"
_HANDLERS = """
from taskqueue import Fail, task

@task
def ends(payload):
    if payload.get("fail"):
        raise Fail(f"no {payload['number']}", type="Wanted")
    return {"number": payload["number"]}
"""
#: Ends without a worker: what is changed in a Task of the load.
_CANCELLED = {"cancel": True, "startAfter": "2099-01-01T00:00:00Z"}
_WITHOUT_WORKER: tuple[dict[str, Any], ...] = (
    _CANCELLED,
    {"dependsOn": ["doomed"]},
    {"handler": "nobody-has-it", "activeDeadlineSeconds": 2},
)
#: Tasks that wait until a user deletes them.
_DELETED = {"suspend": True}
_LABELS = ("a", "b", "c")


class _Load:
    """Creates the Tasks, and deletes some of them."""

    def __init__(self, harness: Harness, count: int, ttl: int, seed: int) -> None:
        self._harness = harness
        self._count = count
        self._ttl = ttl
        self._random = random.Random(seed)

    def run(self) -> None:
        """Create all; a fifth ends without a worker, and a fiftieth is deleted unfinished."""
        kinds = [self._kind(number) for number in range(self._count)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self._create, range(self._count), kinds))

    def _kind(self, number: int) -> dict[str, Any]:
        draw = self._random.random()
        if draw < 0.2:
            return dict(self._random.choice(_WITHOUT_WORKER))
        if draw < 0.22:
            return dict(_DELETED)
        return {}

    def _create(self, number: int, kind: dict[str, Any]) -> None:
        spec = {
            "queue": "q",
            "handler": "ends",
            "payload": {"number": number, "fail": number % 10 == 0},
            "retry": {"maxAttempts": 1 + number % 2},
            **kind,
        }
        if kind != {"suspend": True}:
            spec["ttlSecondsAfterFinished"] = self._ttl
        name = f"t-{number:06}"
        body = {
            "apiVersion": "taskqueue.dev/v1alpha1",
            "kind": "Task",
            "metadata": {"name": name, "labels": {"app": _LABELS[number % len(_LABELS)]}},
            "spec": spec,
        }
        _insist(lambda: self._harness.api.request("POST", self._harness.path("tasks"), body))
        if kind == _DELETED:
            time.sleep(0.5)
            _insist(lambda: self._harness.api.request("DELETE", self._harness.path("tasks", name)))


def _insist(call: Callable[[], object]) -> None:
    """Repeat a request that the API server has not answered; 404 and 409: it has been done."""
    for _ in range(60):
        try:
            call()
            return
        except Refused as refused:
            if refused.status in (404, 409):
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("the API server does not answer")


@contextmanager
def _kills(
    harness: Harness, server: PostgresqlServer, seed: int, every: float
) -> Iterator[Counter[str]]:
    """Kill the operator and PostgreSQL at random until the end of the block."""
    ending, counts = threading.Event(), Counter[str]()

    def kill_operators() -> None:
        chance = random.Random(seed)
        while not ending.wait(chance.uniform(0.5 * every, 1.5 * every)):
            with suppress(Refused, AssertionError, OSError):
                harness.kill(harness.leader(), namespace=OPERATOR_NAMESPACE)
                counts["operator"] += 1

    def kill_database() -> None:
        chance = random.Random(seed + 1)
        while not ending.wait(chance.uniform(0.5 * every, 1.5 * every)):
            server.kill()
            counts["PostgreSQL"] += 1
            ending.wait(chance.uniform(0.5, 8))
            server.start()

    threads = [threading.Thread(target=one) for one in (kill_operators, kill_database)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ending.set()
        for thread in threads:
            thread.join()


async def _rows(server: PostgresqlServer, namespace: str) -> list[ArchivedTask]:
    archive = Archive(server.connection(), timeout=30)
    found: list[ArchivedTask] = []
    after: Place | None = None
    wanted = HistoryFilter(namespace=namespace, queue="q")
    while page := await archive.read(wanted, after=after, rows=MOST_ROWS):
        found += page
        after = Place(page[-1].completed, page[-1].uid)
    await archive.close()
    return found


def differences(rows: list[ArchivedTask], seen: Mapping[str, Seen]) -> list[str]:
    """Return what is wrong with the rows, as they should follow from what was seen."""
    wrong: list[str] = []
    counts = Counter(row.uid for row in rows)
    wrong += [f"{uid}: {count} rows" for uid, count in counts.items() if count > 1]
    wrong += [f"{uid}: a row of no Task" for uid in counts.keys() - seen.keys()]
    for uid in seen.keys() - counts.keys():
        one = seen[uid].body
        phase = (one.get("status") or {}).get("phase")
        wrong.append(f"{one['metadata']['name']} {uid}: no row; it was {phase} as last seen")
    for row in rows:
        if row.uid in seen:
            expected = seen[row.uid].row()
            found = {name: _plain(getattr(row, name)) for name in expected}
            expected = {name: _comparable(name, value) for name, value in expected.items()}
            if found != expected:
                names = [name for name in expected if found[name] != expected[name]]
                wrong.append(
                    f"{row.name} {row.uid}: "
                    + "; ".join(f"{n} is {found[n]!r}, not {expected[n]!r}" for n in names)
                )
    return wrong


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _comparable(name: str, value: Any) -> Any:
    if name in ("created", "started", "completed") and value is not None:
        return datetime.fromisoformat(value).astimezone(UTC)
    return value


def _wait_until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not {what} within {seconds:g} s"
        time.sleep(1)


def _try(at: Installation, options: argparse.Namespace) -> list[str]:
    harness = Harness(at.api, at.kubectl, at.rabbitmq)
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_connection((at.rabbitmq.host, at.rabbitmq.port), timeout=30) as connection,
    ):
        place = Path(folder)
        place.chmod(0o755)
        server = PostgresqlServer(place, connection.getsockname()[0])
        server.prepare()
        server.start()
        try:
            return _with_database(at, harness, server, options)
        finally:
            server.kill()
            harness.close()


def _with_database(
    at: Installation, harness: Harness, server: PostgresqlServer, options: argparse.Namespace
) -> list[str]:
    harness.create_core("configmaps", "ends", data={"ends.py": _HANDLERS})
    for name, uri in (
        ("archive", server.connection().uri),
        ("nowhere", f"postgresql://u:p@{server.host}:1/postgres"),
    ):
        harness.create_core("secrets", name, stringData={"uri": uri})
    template = orjson.loads(orjson.dumps(TEMPLATE))
    template["spec"]["containers"][0] |= {"image": at.image, "args": ["worker", "ends"]}
    template["spec"]["volumes"][0]["configMap"] = {"name": "ends"}
    fixed: dict[str, Any] = {"scaling": {"minReplicas": 1, "maxReplicas": 1}}
    workers = {"concurrency": 8, "template": template}
    harness.queue(workers=workers, archive={"connectionSecret": {"name": "archive"}}, **fixed)
    harness.queue(
        "dead", workers=workers, archive={"connectionSecret": {"name": "nowhere"}}, **fixed
    )
    harness.ready()
    harness.condition("ArchiveConnected", "True", "Connected")
    harness.condition("ArchiveConnected", "False", "ArchiveUnavailable", "dead")
    record = TaskRecord(at.api, harness.namespace)
    harness.task("doomed", "ends", payload={"number": 0, "fail": True}, retry={"maxAttempts": 1})
    load = _Load(harness, options.tasks, options.ttl, options.seed)
    begin = time.monotonic()
    with _kills(harness, server, options.seed, options.every) as kills:
        load.run()
        print(f"created after {time.monotonic() - begin:.0f} s; killed: {dict(kills)}", flush=True)

        def is_over() -> bool:
            # All but the doomed one have a time to live, or are deleted.
            return sum(not one.deleted for one in record.seen().values()) <= 1

        _wait_until(is_over, "all Tasks deleted", options.patience)
        print(f"over after {time.monotonic() - begin:.0f} s; killed: {dict(kills)}", flush=True)
    seen = record.seen()
    rows: list[ArchivedTask] = []

    def are_all_there() -> bool:
        nonlocal rows
        rows = asyncio.run(_rows(server, harness.namespace))
        return len(rows) >= len(seen)

    with suppress(AssertionError):
        _wait_until(are_all_there, "all rows there", 60)
    record.close()
    ways = Counter(f"{row.phase} {row.reason}".strip() for row in rows)
    print(f"{len(seen)} Tasks, {len(rows)} rows: {dict(ways)}")
    return differences(rows, seen)


def main() -> int:
    """Try it, print what is wrong, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.archived",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=20_000, help="(default: 20000)")
    parser.add_argument("--ttl", type=int, default=5, help="seconds (default: 5)")
    parser.add_argument("--every", type=float, default=20, help="seconds between kills of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=1800, help="seconds until all is over")
    options = parser.parse_args()
    with sources(None) as tree:
        images.build_operator(_IMAGE, tree)
        cluster = open_cluster(DEFAULT_NAME, KUBECONFIG, with_images=False)
        at = install(cluster, _IMAGE, tree)
        wrong = _try(at, options)
    for line in wrong[:40]:
        print(f"WRONG: {line}")
    print(f"{len(wrong)} differences")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
