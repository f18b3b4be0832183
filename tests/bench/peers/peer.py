"""Our workers and their peers in the worker benchmark: how to start them and publish their work.

Each runs two worker processes with a handler that does nothing. Other settings have their defaults,
except where this module sets them.
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

ROOT = Path(__file__).parents[3]
OURS = "taskqueue"
DRAMATIQ = "dramatiq"
DRAMATIQ_QUORUM = "dramatiq_quorum"
CELERY = "celery"

_PUBLISH_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A task queue whose workers are measured.

    Attributes:
        name: in tables and results.
        queue: the broker's name of its queue.
        commands: its processes; a command that starts its own children counts with them.
        handler: of our workers. Empty: ``python -m <publishes> N`` publishes the messages.
        publishes: a module; see ``handler``.
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
) -> Peer:
    """Return our workers, and the process that discards their outcomes.

    Args:
        name: in tables and results.
        handler: in `tests.bench.peers.handlers`.
        processes: how many workers.
        slots: attempts that each runs at once; None: its default, the number of CPUs.
        source: a folder with another version of the package ``taskqueue``, to compare with.
    """
    worker = [sys.executable, "-m", "taskqueue", "worker", "tests.bench.peers.handlers"]
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
    return Peer(
        name=name,
        queue=work_queue(bench.NAMESPACE, bench.QUEUE),
        commands=[
            [sys.executable, "-m", "tests.bench.peers.outcomes"],
            *[worker] * processes,
        ],
        handler=handler,
        environment=environment,
    )


def dramatiq(*, processes: int, threads: int, quorum: bool) -> Peer:
    """Return Dramatiq on RabbitMQ.

    Args:
        processes: how many.
        threads: of each.
        quorum: on a quorum queue, with a confirm of each message it publishes; else as it comes.

    Raises:
        BenchError: it is not installed.
    """
    app = "tests.bench.peers.dramatiq_app"
    _installed("dramatiq")
    scale = ["--processes", str(processes), "--threads", str(threads)]
    return Peer(
        name=DRAMATIQ_QUORUM if quorum else DRAMATIQ,
        queue="bench-dramatiq" + "-quorum" * quorum,
        commands=[[sys.executable, "-m", "dramatiq", app, *scale]],
        publishes=app,
        environment={"BENCH_DRAMATIQ_QUORUM": "1"} if quorum else {},
    )


def celery(*, processes: int) -> Peer:
    """Return Celery on RabbitMQ, acknowledging after the run.

    Raises:
        BenchError: it is not installed.
    """
    app = "tests.bench.peers.celery_app"
    _installed("celery")
    scale = ["--pool", "prefork", "--concurrency", str(processes), "--loglevel", "WARNING"]
    return Peer(
        name=CELERY,
        queue="bench-celery",
        commands=[[sys.executable, "-m", "celery", "-A", app, "worker", *scale]],
        publishes=app,
    )


async def publish(peer: Peer, broker: Broker, count: int) -> None:
    """Put so many messages into the peer's queue, with the peer's own client."""
    async with within(_PUBLISH_SECONDS, f"publishing {count} messages for {peer.name}"):
        if peer.handler:
            await broker.publish(peer.handler, count)
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            peer.publishes,
            str(count),
            cwd=ROOT,
            env=environment_of(peer, broker),
        )
        if await process.wait():
            raise BenchError(f"{peer.publishes} cannot publish: see above")


def environment_of(peer: Peer, broker: Broker) -> dict[str, str]:
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
        **peer.environment,
    }


def _installed(package: str) -> None:
    if find_spec(package) is None:
        raise BenchError(
            f"{package} is not installed: pip install -c constraints.txt -e '.[bench]'"
        )
