"""``python -m tests.bench BENCHMARK``: see docs/development/benchmarks.md.

The last line of the output is one JSON object. Exit code 1, and why on standard error, when there
is no figure.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from devcluster.commands import DevclusterError
from devcluster.paths import KUBECONFIG
from taskqueue.kubernetes.client import ApiError
from tests.bench import coldstart as cold
from tests.bench import latency as single
from tests.bench import scaling as pool
from tests.bench import throughput as many
from tests.bench import worker as alone
from tests.bench.cluster import Cluster, bench_namespace, connected, one_operator
from tests.bench.deadline import BenchError
from tests.bench.floor import remove
from tests.bench.machine import facts
from tests.bench.report import Outcome, Report

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        help="Measure the cluster of this kubeconfig as it is. Default: the development cluster, "
        "brought up and deployed to from this checkout first."
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="So little that it only shows that it works.")]

_CLIENTS = 32


@app.command()
def throughput(
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of a round.")] = 2000,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Worker pods.")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks a worker runs at once.")] = 8,
    clients: Annotated[int, typer.Option(min=1, help="Creates under way at once.")] = _CLIENTS,
    jobs: Annotated[int, typer.Option(min=1, help="Completions of a round's Job.")] = 30,
    kubeconfig: Kubeconfig = None,
    quick: Quick = False,
) -> None:
    """Measure Tasks a second, from the first create to the last end."""
    settings = many.Settings(
        tasks=tasks,
        job_completions=jobs,
        rounds=rounds,
        workers=workers,
        concurrency=concurrency,
        clients=clients,
    )
    if quick:
        settings = replace(settings, tasks=min(tasks, 200), job_completions=4, rounds=1)
    _bench(kubeconfig, lambda target, report: many.run(target, settings, report), clients=clients)


@app.command()
def latency(
    tasks: Annotated[int, typer.Option(min=1, help="Tasks, one after the other.")] = 200,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs, one after the other.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks the worker runs at once.")] = 8,
    kubeconfig: Kubeconfig = None,
    quick: Quick = False,
) -> None:
    """Measure one Task at a time on a warm worker, from create to Complete."""
    settings = single.Settings(tasks=tasks, jobs=jobs, concurrency=concurrency)
    if quick:
        settings = replace(settings, tasks=min(tasks, 20), jobs=1)
    _bench(kubeconfig, lambda target, report: single.run(target, settings, report))


@app.command()
def coldstart(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    kubeconfig: Kubeconfig = None,
    quick: Quick = False,
) -> None:
    """Measure one Task for a queue at zero workers, from create to Complete."""
    settings = cold.Settings(rounds=1 if quick else rounds)
    _bench(kubeconfig, lambda target, report: cold.run(target, settings, report))


@app.command()
def worker(
    messages: Annotated[int, typer.Option(min=1000, help="Messages of a round.")] = 15_000,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    slots: Annotated[
        int | None, typer.Option(min=1, help="What each of our workers runs at once.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option(help="Our handlers in threads and on the loop as well.")
    ] = True,
    kubeconfig: Kubeconfig = None,
    quick: Quick = False,
) -> None:
    """Measure messages a second of two worker processes, without the operator."""
    settings = alone.Settings(messages=messages, rounds=rounds, slots=slots, everywhere=everywhere)
    if quick:
        settings = replace(settings, messages=min(messages, 2000), rounds=1)
    _bench(kubeconfig, lambda target, report: alone.run(target, settings, report), stage=_bare)


@app.command()
def scaling(
    rounds: Annotated[int, typer.Option(min=1, help="Of one Task from zero.")] = 5,
    drains: Annotated[int, typer.Option(min=1, help="Of 200 Tasks from zero.")] = 3,
    kubeconfig: Kubeconfig = None,
    quick: Quick = False,
) -> None:
    """Measure the pool from zero, through 200 Tasks, and shrinking under long ones: 8 minutes."""
    settings = pool.QUICK if quick else pool.Settings(rounds=rounds, drains=drains)
    _bench(kubeconfig, lambda target, report: pool.run(target, settings, report))


@asynccontextmanager
async def _operated(target: Cluster) -> AsyncIterator[None]:
    """The operator and a namespace, for Tasks."""
    await remove(target.client)
    async with bench_namespace(target), one_operator(target.client):
        yield


@asynccontextmanager
async def _bare(target: Cluster) -> AsyncIterator[None]:
    """Nothing of Kubernetes but where the broker is."""
    yield


def _bench(
    kubeconfig: Path | None,
    run: Callable[[Cluster, Report], Awaitable[Outcome]],
    *,
    clients: int = _CLIENTS,
    stage: Callable[[Cluster], AbstractAsyncContextManager[None]] = _operated,
) -> None:
    report = Report()
    try:
        path = kubeconfig or _development_cluster()
        if not path.exists():
            raise BenchError(f"there is no kubeconfig {path}: bring a cluster up (make deploy)")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(_measure(path, run, report, clients, stage))
    except (BenchError, ApiError, DevclusterError) as error:
        print(f"no result: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("no figure: stopped", file=sys.stderr)
        raise typer.Exit(1) from None
    report.end(outcome)


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


if __name__ == "__main__":
    app()
