"""``python -m tests.bench BENCHMARK``: see docs/development/benchmarks.md.

The last line of the output is one JSON object. Exit code 1, and why on standard error, when there
is no figure.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from devcluster.commands import DevclusterError
from devcluster.paths import KUBECONFIG
from taskqueue.cli.arguments import CommandParsers, Run, add_command, add_group, at_least
from taskqueue.kubernetes.client import ApiError
from tests.bench import archive as kept
from tests.bench import codec as wire
from tests.bench import coldstart as cold
from tests.bench import failover as lost
from tests.bench import latency as single
from tests.bench import memory as held
from tests.bench import publish as sending
from tests.bench import results as stored
from tests.bench import scaling as pool
from tests.bench import schedules as timed
from tests.bench import spawn as processes
from tests.bench import throughput as many
from tests.bench import waiting as waits
from tests.bench import worker as alone
from tests.bench.cluster import Cluster, bench_namespace, connected
from tests.bench.deadline import BenchError
from tests.bench.floor import BEFORE, NOW
from tests.bench.machine import facts
from tests.bench.operators import replicas
from tests.bench.report import Outcome, Report

_CLIENTS = 32


def main() -> int:
    """Run the benchmark that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benchmarks = add_group(parser)
    _add_throughput(benchmarks)
    _add_archive(benchmarks)
    _add_latency(benchmarks)
    _add_coldstart(benchmarks)
    _add_worker(benchmarks)
    _add_publish(benchmarks)
    _add_scaling(benchmarks)
    _add_failover(benchmarks)
    _add_codec(benchmarks)
    _add_spawn(benchmarks)
    _add_memory(benchmarks)
    _add_results(benchmarks)
    _add_schedules(benchmarks)
    options = parser.parse_args()
    code: int = options.run(options)
    return code


def _add(benchmarks: CommandParsers, name: str, run: Run, *, help: str) -> argparse.ArgumentParser:
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


def _add_number(
    parser: argparse.ArgumentParser, name: str, default: int | None, help: str, *, minimum: int = 1
) -> None:
    shown = "" if default is None else f" (default: {default})"
    parser.add_argument(
        name, type=at_least(minimum), default=default, metavar="N", help=f"{help}{shown}"
    )


def _add_throughput(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "throughput",
        _throughput,
        help="Measure Tasks a second, from the first create to the last end.",
    )
    _add_number(parser, "--tasks", 2000, "Tasks of a round")
    _add_number(parser, "--rounds", 3, "rounds")
    _add_number(parser, "--workers", 2, "worker pods")
    _add_number(parser, "--concurrency", 8, "Tasks a worker runs at once")
    _add_number(parser, "--clients", _CLIENTS, "creates in flight at once")
    _add_number(parser, "--jobs", 30, "completions of a round's Job")
    _add_number(parser, "--operators", 1, "operators: one leads, the others stand by")


def _throughput(options: argparse.Namespace) -> int:
    settings = many.Settings(
        tasks=options.tasks,
        job_completions=options.jobs,
        rounds=options.rounds,
        workers=options.workers,
        concurrency=options.concurrency,
        clients=options.clients,
    )
    if options.quick:
        settings = replace(settings, tasks=min(options.tasks, 200), job_completions=4, rounds=1)
    return _bench(
        options.kubeconfig,
        lambda target, report: many.run(target, settings, report),
        clients=options.clients,
        stage=partial(_operated, operators=options.operators),
    )


def _add_archive(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "archive",
        _archive,
        help="Measure Tasks a second of a TaskQueue with an archive, and without, in turn.",
    )
    _add_number(parser, "--tasks", 2000, "Tasks of a round")
    _add_number(parser, "--rounds", 4, "rounds of each")
    _add_number(parser, "--workers", 2, "worker pods")
    _add_number(parser, "--concurrency", 8, "Tasks a worker runs at once")
    _add_number(parser, "--clients", _CLIENTS, "creates in flight at once")


def _archive(options: argparse.Namespace) -> int:
    settings = kept.Settings(
        tasks=options.tasks,
        rounds=options.rounds,
        workers=options.workers,
        concurrency=options.concurrency,
        clients=options.clients,
    )
    if options.quick:
        settings = replace(settings, tasks=min(options.tasks, 200), rounds=1)
    return _bench(
        options.kubeconfig,
        lambda target, report: kept.run(target, settings, report),
        clients=options.clients,
    )


def _add_latency(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "latency",
        _latency,
        help="Measure one Task at a time on a warm worker, from create to Complete.",
    )
    _add_number(parser, "--tasks", 200, "Tasks, one after the other")
    _add_number(parser, "--jobs", 8, "Jobs, one after the other")
    _add_number(parser, "--concurrency", 8, "Tasks the worker runs at once")


def _latency(options: argparse.Namespace) -> int:
    settings = single.Settings(
        tasks=options.tasks, jobs=options.jobs, concurrency=options.concurrency
    )
    if options.quick:
        settings = replace(settings, tasks=min(options.tasks, 20), jobs=1)
    return _bench(options.kubeconfig, lambda target, report: single.run(target, settings, report))


def _add_coldstart(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "coldstart",
        _coldstart,
        help="Measure one Task for a queue at zero workers, from create to Complete.",
    )
    _add_number(parser, "--rounds", 5, "rounds")


def _coldstart(options: argparse.Namespace) -> int:
    settings = cold.Settings(rounds=1 if options.quick else options.rounds)
    return _bench(options.kubeconfig, lambda target, report: cold.run(target, settings, report))


def _add_worker(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "worker",
        _worker,
        help="Measure messages a second of two worker processes, without the operator.",
    )
    _add_number(parser, "--messages", 15_000, "messages of a round", minimum=1000)
    _add_number(parser, "--rounds", 5, "rounds")
    _add_number(parser, "--slots", None, "what each of our workers runs at once")
    parser.add_argument(
        "--everywhere",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also our handlers in threads and on the loop (the default)",
    )


def _worker(options: argparse.Namespace) -> int:
    settings = alone.Settings(
        messages=options.messages,
        rounds=options.rounds,
        slots=options.slots,
        everywhere=options.everywhere,
    )
    if options.quick:
        settings = replace(settings, messages=min(options.messages, 2000), rounds=1)
    return _bench(
        options.kubeconfig,
        lambda target, report: alone.run(target, settings, report),
        stage=_bare,
    )


def _add_publish(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "publish",
        _publish,
        help="Measure direct messages a second, sent and confirmed.",
    )
    _add_number(parser, "--messages", 20_000, "messages of a round")
    _add_number(parser, "--one-at-a-time", 1000, "messages of a round of pika's")
    _add_number(parser, "--rounds", 5, "rounds")


def _publish(options: argparse.Namespace) -> int:
    settings = sending.Settings(
        messages=options.messages, one_at_a_time=options.one_at_a_time, rounds=options.rounds
    )
    if options.quick:
        settings = sending.Settings(
            messages=min(options.messages, 1000),
            one_at_a_time=min(options.one_at_a_time, 50),
            rounds=1,
        )
    return _bench(
        options.kubeconfig,
        lambda target, report: sending.run(target, settings, report),
        stage=_bare,
    )


def _add_codec(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "codec",
        _codec,
        help="Measure CPU time a message of our AMQP transport and of pika's.",
    )
    _add_number(parser, "--messages", 4000, "messages of a round")
    _add_number(parser, "--rounds", 15, "rounds")


def _codec(options: argparse.Namespace) -> int:
    settings = wire.Settings(messages=options.messages, rounds=options.rounds)
    if options.quick:
        settings = wire.Settings(messages=min(options.messages, 500), rounds=2)
    return _bench(
        options.kubeconfig,
        lambda target, report: wire.run(target, settings, report),
        stage=_bare,
    )


def _add_spawn(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "spawn",
        _spawn,
        help="Measure how long processes take from our fork server and the standard library's.",
    )
    _add_number(parser, "--processes", 20, "processes of each kind in a round")
    _add_number(parser, "--rounds", 15, "rounds")


def _spawn(options: argparse.Namespace) -> int:
    settings = processes.Settings(rounds=options.rounds, processes=options.processes)
    if options.quick:
        settings = processes.Settings(rounds=2, processes=min(options.processes, 3))
    return _bench_here(lambda report: processes.run(settings, report))


def _add_memory(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "memory",
        _memory,
        help="Measure the memory of the operators while many Tasks of 10 kB wait; with "
        "--synthetic of the operator's parts only.",
    )
    _add_number(parser, "--tasks", 100_000, "Tasks that wait")
    _add_number(parser, "--workers", 2, "worker pods that run them in the end")
    _add_number(parser, "--concurrency", 8, "Tasks a worker runs at once")
    _add_number(parser, "--clients", _CLIENTS, "creates in flight at once")
    _add_number(parser, "--synthetic", None, "Tasks, made up: it needs no cluster")
    _add_number(
        parser,
        "--dependencies",
        0,
        "Tasks each depends on, that follow it; 0: a third depends on one",
        minimum=0,
    )
    parser.add_argument("--trace", action="store_true", help="print what has allocated the memory")


def _memory(options: argparse.Namespace) -> int:
    if options.synthetic is None:
        waiting = waits.Settings(
            tasks=min(options.tasks, 300) if options.quick else options.tasks,
            workers=options.workers,
            concurrency=options.concurrency,
            clients=options.clients,
        )
        return _bench(
            options.kubeconfig,
            lambda target, report: waits.run(target, waiting, report),
            clients=options.clients,
            stage=bench_namespace,
        )
    settings = held.Settings(
        tasks=options.synthetic, dependencies=options.dependencies, trace=options.trace
    )
    if options.quick:
        settings = replace(settings, tasks=min(options.synthetic, 300))
    return _bench_here(lambda report: held.run(settings, report), uvloop.new_event_loop)


def _add_results(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "results",
        _results,
        help="Keep large results in each kind of store while it is killed, and read all of them.",
    )
    _add_number(parser, "--tasks", 10_000, "Tasks for each store")
    _add_number(parser, "--bytes", 100_000, "size of a result", minimum=20_000)
    _add_number(parser, "--kills", 2, "how often each store is killed", minimum=0)
    _add_number(parser, "--away-seconds", 5, "how long it is away each time")
    _add_number(parser, "--workers", 2, "worker pods")
    _add_number(parser, "--concurrency", 8, "Tasks a worker runs at once")
    _add_number(parser, "--clients", _CLIENTS, "creates in flight at once")
    parser.add_argument(
        "--stores", nargs="+", choices=stored.STORES, default=stored.STORES, help="(default: all)"
    )


def _results(options: argparse.Namespace) -> int:
    settings = stored.Settings(
        tasks=min(options.tasks, 200) if options.quick else options.tasks,
        size=options.bytes,
        stores=options.stores,
        kills=options.kills,
        away_seconds=options.away_seconds,
        workers=options.workers,
        concurrency=options.concurrency,
        clients=options.clients,
    )
    return _bench(
        options.kubeconfig,
        lambda target, report: stored.run(target, settings, report),
        clients=options.clients,
        stage=bench_namespace,
    )


def _add_scaling(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "scaling",
        _scaling,
        help="Measure the pool from zero, through 200 Tasks, and shrinking under long ones: 8 "
        "minutes.",
    )
    _add_number(parser, "--rounds", 5, "rounds of one Task from zero")
    _add_number(parser, "--drains", 3, "rounds of 200 Tasks from zero")


def _scaling(options: argparse.Namespace) -> int:
    settings = (
        pool.QUICK if options.quick else pool.Settings(rounds=options.rounds, drains=options.drains)
    )
    return _bench(options.kubeconfig, lambda target, report: pool.run(target, settings, report))


def _add_failover(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "failover",
        _failover,
        help="Measure the time from the loss of the leading operator to the next dispatch.",
    )
    _add_number(parser, "--rounds", 5, "losses of each kind")
    _add_number(parser, "--waiting", 0, "Tasks of 10 kB that wait meanwhile", minimum=0)
    _add_number(parser, "--paused-seconds", 25, "how long a leader is paused")
    parser.add_argument(
        "--ways", nargs="+", choices=lost.WAYS, default=lost.WAYS, help="(default: all)"
    )


def _failover(options: argparse.Namespace) -> int:
    settings = lost.Settings(
        rounds=1 if options.quick else options.rounds,
        waiting=options.waiting,
        paused_seconds=options.paused_seconds,
        ways=options.ways,
    )
    return _bench(
        options.kubeconfig,
        lambda target, report: lost.run(target, settings, report),
        stage=bench_namespace,
    )


def _add_schedules(benchmarks: CommandParsers) -> None:
    parser = _add(
        benchmarks,
        "schedules",
        _schedules,
        help="Measure how late runs of schedules of one minute are, and that each is created once, "
        "also when operators are lost: 12 minutes.",
    )
    _add_number(parser, "--schedules", 300, "schedules of one minute", minimum=3)
    _add_number(parser, "--minutes", 2, "minutes in peace, and with jitter")
    _add_number(parser, "--absent-minutes", 3, "minutes without an operator")


def _schedules(options: argparse.Namespace) -> int:
    settings = timed.Settings(
        schedules=options.schedules,
        minutes=options.minutes,
        absent_minutes=options.absent_minutes,
    )
    if options.quick:
        settings = timed.Settings(schedules=6, minutes=1, absent_minutes=1)
    return _bench(
        options.kubeconfig,
        lambda target, report: timed.run(target, settings, report),
        stage=bench_namespace,
    )


def _bench_here(
    run: Callable[[Report], Coroutine[Any, Any, Outcome]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run a benchmark that needs no cluster."""
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
async def _operated(target: Cluster, *, operators: int = 1) -> AsyncIterator[None]:
    """So many operators and a namespace, for Tasks."""
    for one in (NOW, BEFORE):
        await one.remove(target.client)
    async with bench_namespace(target), replicas(target.client, operators):
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
) -> int:
    report = Report()
    try:
        path = kubeconfig or _development_cluster()
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


if __name__ == "__main__":
    sys.exit(main())
