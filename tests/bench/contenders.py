"""Ours and the peers of the worker benchmark: how each is started, and how its work is published.

All run two worker processes and do nothing in the handler; everything else is at its default, but
for what is said here.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from taskqueue.contract.names import work_queue
from tests.bench import cluster as bench
from tests.bench.brokers import Broker
from tests.bench.deadline import BenchError, within

ROOT = Path(__file__).parents[2]
OURS = "taskqueue"
DRAMATIQ = "dramatiq"
CELERY = "celery"

_PUBLISH_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Someone whose workers are measured.

    Attributes:
        name: in tables and figures.
        queue: its messages wait in this one.
        commands: its processes; a command that starts its own children counts with them.
        handler: of ours; empty: its own module publishes, ``python -m publishes N``.
        publishes: see there.
        environment: of its processes, besides ours and the broker's address.
    """

    name: str
    queue: str
    commands: Sequence[Sequence[str]]
    handler: str = ""
    publishes: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def ours(
    name: str, handler: str, *, processes: int, slots: int | None, source: Path | None = None
) -> Contender:
    """Return our workers, and the process that throws their outcomes away.

    Args:
        name: in tables and figures.
        handler: in `tests.bench.contestants.handlers`.
        processes: how many workers.
        slots: what each runs at once; None: its default, the CPUs.
        source: a folder with another version of the package ``taskqueue``, to be compared.
    """
    worker = [sys.executable, "-m", "taskqueue", "worker", "tests.bench.contestants.handlers"]
    environment = {
        "TASKQUEUE_NAMESPACE": bench.NAMESPACE,
        "TASKQUEUE_QUEUE": bench.QUEUE,
        "TASKQUEUE_HEALTH_PORT": "0",
        "POD_NAME": "bench-worker-0123456789-abcde",
    }
    if slots is not None:
        environment["TASKQUEUE_CONCURRENCY"] = str(slots)
    if source is not None:
        environment["PYTHONPATH"] = f"{source}{os.pathsep}{ROOT}"
    return Contender(
        name=name,
        queue=work_queue(bench.NAMESPACE, bench.QUEUE),
        commands=[
            [sys.executable, "-m", "tests.bench.contestants.outcomes"],
            *[worker] * processes,
        ],
        handler=handler,
        environment=environment,
    )


def dramatiq(*, processes: int, threads: int) -> Contender:
    """Return Dramatiq on RabbitMQ.

    Raises:
        BenchError: it is not installed.
    """
    app = "tests.bench.contestants.dramatiq_app"
    _installed("dramatiq")
    scale = ["--processes", str(processes), "--threads", str(threads)]
    return Contender(
        name=DRAMATIQ,
        queue="bench-dramatiq",
        commands=[[sys.executable, "-m", "dramatiq", app, *scale]],
        publishes=app,
    )


def celery(*, processes: int) -> Contender:
    """Return Celery on RabbitMQ, acknowledging after the run.

    Raises:
        BenchError: it is not installed.
    """
    app = "tests.bench.contestants.celery_app"
    _installed("celery")
    scale = ["--pool", "prefork", "--concurrency", str(processes), "--loglevel", "WARNING"]
    return Contender(
        name=CELERY,
        queue="bench-celery",
        commands=[[sys.executable, "-m", "celery", "-A", app, "worker", *scale]],
        publishes=app,
    )


async def publish(contender: Contender, broker: Broker, count: int) -> None:
    """Put so many messages into the contender's queue, with the contender's own client."""
    async with within(_PUBLISH_SECONDS, f"publishing {count} messages for {contender.name}"):
        if contender.handler:
            await broker.publish(contender.handler, count)
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            contender.publishes,
            str(count),
            cwd=ROOT,
            env=environment_of(contender, broker),
        )
        if await process.wait():
            raise BenchError(f"{contender.publishes} cannot publish: see above")


def environment_of(contender: Contender, broker: Broker) -> dict[str, str]:
    """Return the whole environment of its processes."""
    at = broker.parameters
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "BENCH_BROKER_URI": broker.uri,
        "TASKQUEUE_BROKER_HOST": at.host,
        "TASKQUEUE_BROKER_PORT": str(at.port),
        "TASKQUEUE_BROKER_USERNAME": at.username,
        "TASKQUEUE_BROKER_PASSWORD": at.password,
        "TASKQUEUE_BROKER_VHOST": at.virtual_host,
        **contender.environment,
    }


def _installed(package: str) -> None:
    if find_spec(package) is None:
        raise BenchError(
            f"{package} is not installed: pip install -c constraints.txt -e '.[bench]'"
        )
