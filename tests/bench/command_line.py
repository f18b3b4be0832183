"""The command of a benchmark: the options that all have, and running it where it measures.

A benchmark's module has ``add_command(benchmarks)``, which adds its command and its own options,
and stands in the list of ``__main__``. It ends in `measure_cluster` or in `measure_here`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from devcluster.commands import DevclusterError
from devcluster.paths import KUBECONFIG
from taskqueue.cli.arguments import CommandParsers, Run, add_command, at_least
from taskqueue.kubernetes.client import ApiError
from tests.bench.cluster import Cluster, bench_namespace, connected
from tests.bench.deadline import BenchError
from tests.bench.floor import BEFORE, NOW
from tests.bench.machine import facts
from tests.bench.operators import replicas
from tests.bench.report import Outcome, Report

#: Connections that create objects at once, where the command line does not say.
CLIENTS = 32


def add_benchmark(
    benchmarks: CommandParsers, name: str, run: Run, *, help: str
) -> argparse.ArgumentParser:
    """Add the command of a benchmark, with the options that all benchmarks have."""
    parser = add_command(benchmarks, name, run, help=help)
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="measure the cluster of this kubeconfig as it is (default: the development cluster, "
        "brought up and deployed to from this checkout first)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="so short that it only shows that it works"
    )
    return parser


def add_number(
    parser: argparse.ArgumentParser, name: str, default: int | None, help: str, *, minimum: int = 1
) -> None:
    """Add an option whose value is a whole number of at least ``minimum``."""
    shown = "" if default is None else f" (default: {default})"
    parser.add_argument(
        name, type=at_least(minimum), default=default, metavar="N", help=f"{help}{shown}"
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options of a benchmark that has worker pods run Tasks which it creates."""
    add_number(parser, "--workers", 2, "worker pods")
    add_number(parser, "--concurrency", 8, "Tasks a worker runs at once")
    add_number(parser, "--clients", CLIENTS, "creates in flight at once")


def measure_here(
    run: Callable[[Report], Coroutine[Any, Any, Outcome]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run a benchmark that needs no cluster; return the exit code."""
    report = Report()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            outcome = runner.run(run(report))
    except BenchError as error:
        print(f"no result: {error}", file=sys.stderr)
        return 1
    report.end(outcome)
    return 0


@asynccontextmanager
async def operated(target: Cluster, *, operators: int = 1) -> AsyncIterator[None]:
    """Give this number of operators and a namespace, for Tasks."""
    for one in (NOW, BEFORE):
        await one.remove(target.client)
    async with bench_namespace(target), replicas(target.client, operators):
        yield


@asynccontextmanager
async def broker_only(target: Cluster) -> AsyncIterator[None]:
    """Prepare nothing in Kubernetes: the benchmark asks only where the broker is."""
    yield


def measure_cluster(
    options: argparse.Namespace,
    run: Callable[[Cluster, Report], Awaitable[Outcome]],
    *,
    clients: int = CLIENTS,
    stage: Callable[[Cluster], AbstractAsyncContextManager[None]] = operated,
) -> int:
    """Run a benchmark of the cluster that ``options`` name; return the exit code.

    Args:
        options: of the command line, of a parser that `add_benchmark` made.
        run: measures.
        clients: connections for the load.
        stage: prepares the cluster before, and clears it up afterwards.
    """
    report = Report()
    try:
        path = options.kubeconfig or _development_cluster()
        if not path.exists():
            raise BenchError(f"there is no kubeconfig {path}: bring a cluster up (make deploy)")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(_measure(path, run, report, clients, stage))
    except (BenchError, ApiError, DevclusterError) as error:
        print(f"no result: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("no figure: stopped", file=sys.stderr)
        return 1
    report.end(outcome)
    return 0


async def _measure(
    kubeconfig: Path,
    run: Callable[[Cluster, Report], Awaitable[Outcome]],
    report: Report,
    clients: int,
    stage: Callable[[Cluster], AbstractAsyncContextManager[None]],
) -> Outcome:
    here = asyncio.current_task()
    if here is not None:
        # As at an interrupt: remove what was put into the cluster.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
    async with connected(kubeconfig, clients=clients) as target:
        machine = await facts(target.client)
        report.machine(machine)
        async with stage(target):
            outcome = await run(target, report)
    return replace(outcome, details={**outcome.details, "machine": machine})


def _development_cluster() -> Path:
    from devcluster.cluster import open_cluster
    from devcluster.deploy import deploy

    deploy(open_cluster())
    return KUBECONFIG
