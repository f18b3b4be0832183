"""Throughput of workers alone: no-op messages that wait in a queue, until none is left.

All use the same broker, in turns. Our workers consume direct messages from a quorum queue,
have the outcome of each confirmed before they acknowledge it, and a process consumes the outcomes,
which counts as our cost. A round begins with the workers started on a full queue; the clock runs
from when a part of it is consumed, so that no start is measured, until no message waits. What
is then still in hand was in hand at the beginning as well. At the end the workers are stopped, and
the queue must be empty: all has been acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median

from taskqueue.cli.arguments import CommandParsers
from taskqueue.contract.names import INBOX_QUEUE
from tests.bench import processes
from tests.bench.brokers import Broker, bench_broker
from tests.bench.cluster import Cluster
from tests.bench.command_line import add_benchmark, add_number, broker_only, measure_cluster
from tests.bench.deadline import BenchError, within
from tests.bench.machine import cores
from tests.bench.peers.peer import (
    CELERY,
    DRAMATIQ,
    DRAMATIQ_QUORUM,
    OURS,
    ROOT,
    Peer,
    celery,
    dramatiq,
    environment_of,
    ours,
    publish,
)
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio, significant

#: This part of the messages is run before the clock starts.
WARM_UP = 0.1

#: Threads of a Dramatiq process: its default.
THREADS = 8

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
#: Slower than anybody, in messages a second.
_SLOWEST = 200
_LOOK_SECONDS = 0.01
#: Our outcomes may be on their way for so long after the last acknowledgement.
_OUTCOMES_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        messages: of a round.
        rounds: of each peer.
        processes: workers of each.
        slots: of each of our workers; None: the default.
        everywhere: our handlers in threads and on the loop too.
    """

    messages: int
    rounds: int
    processes: int = 2
    slots: int | None = None
    everywhere: bool = True


@dataclass(frozen=True, slots=True)
class Round:
    """One peer once.

    Attributes:
        rate: messages a second.
        cpu: CPU milliseconds a message of its processes.
        broker_cpu: of RabbitMQ; None: it is not to be seen from here.
        others: the part of all CPUs that everybody else had meanwhile, 0 to 1; None likewise.
    """

    rate: float
    cpu: float
    broker_cpu: float | None = None
    others: float | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds so far.

    Attributes:
        workers: of the peer's processes.
        sample: of the cluster; None: it is not to be seen from here.
    """

    workers: float
    sample: processes.CpuSample | None


async def run(cluster: Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure all in turns, and report."""
    peers = _peers(settings)
    rounds: dict[str, list[Round]] = {each.name: [] for each in peers}
    async with bench_broker(cluster.client) as broker:
        for number in range(settings.rounds):
            # There and back: ours always comes beside both peers, before and after each in turn.
            for peer in peers if number % 2 == 0 else reversed(peers):
                one = await measure(peer, broker, settings.messages, host=cluster.host)
                rounds[peer.name].append(one)
                report.say(f"round {number}: {peer.name} {_describe(one)}")
    return _report(rounds, report)


def _peers(settings: Settings) -> list[Peer]:
    named = {OURS: "noop"}
    if settings.everywhere:
        named |= {f"{OURS}_threads": "noop-thread", f"{OURS}_async": "noop-async"}
    mine = [
        ours(name, handler, processes=settings.processes, slots=settings.slots)
        for name, handler in named.items()
    ]
    return [
        dramatiq(processes=settings.processes, threads=THREADS, quorum=False),
        mine[0],
        dramatiq(processes=settings.processes, threads=THREADS, quorum=True),
        celery(processes=settings.processes),
        *mine[1:],
    ]


async def measure(peer: Peer, broker: Broker, messages: int, *, host: str) -> Round:
    """Publish, start the workers, and measure the time until the queue is empty.

    Raises:
        BenchError: the workers do not start, or do not come to an end, or leave something behind.
    """
    await publish(peer, broker, messages)
    queue = peer.queue
    async with _running(peer, broker) as pids:
        warm = int(messages * (1 - WARM_UP))
        async with within(_START_SECONDS, f"the workers of {peer.name} getting to work"):
            begun = await _left(broker, queue, warm)
        start, before = time.perf_counter(), _cpu(pids, host)
        limit = 30 + messages / _SLOWEST
        async with within(limit, f"{peer.name} running {messages} messages"):
            await _left(broker, queue, 0)
        seconds, after = time.perf_counter() - start, _cpu(pids, host)
        if peer.handler:
            async with within(_OUTCOMES_SECONDS, "the outcomes being consumed"):
                await _left(broker, INBOX_QUEUE, 0)
    if left := await broker.ready(queue):
        raise BenchError(f"{peer.name} left {left} messages unacknowledged")
    return _round(begun, seconds, before, after)


def _round(count: int, seconds: float, before: Cpu, after: Cpu) -> Round:
    workers = after.workers - before.workers
    rate, cpu = count / seconds, 1000 * workers / count
    if before.sample is None or after.sample is None:
        return Round(rate, cpu)
    used = processes.between(before.sample, after.sample)
    machine = after.sample.machine - before.sample.machine
    brokers, client = used.get("rabbitmq", 0.0), used.get(processes.CLIENT, 0.0)
    others = max(machine - workers - brokers - client, 0.0) / (seconds * cores())
    return Round(rate, cpu, 1000 * brokers / count, others)


async def _left(broker: Broker, queue: str, count: int) -> int:
    """Wait until at most ``count`` messages wait in the queue, and return how many do."""
    while (ready := await broker.ready(queue)) > count:  # noqa: ASYNC110 - the broker is polled
        await asyncio.sleep(_LOOK_SECONDS)
    return ready


def _cpu(pids: Sequence[int], host: str) -> Cpu:
    return Cpu(processes.of_trees(pids), processes.sample(host))


@asynccontextmanager
async def _running(peer: Peer, broker: Broker) -> AsyncIterator[list[int]]:
    """Have its processes run, and end them in order."""
    with tempfile.TemporaryFile() as output:
        started: list[asyncio.subprocess.Process] = []
        try:
            for command in peer.commands:
                started.append(
                    await asyncio.create_subprocess_exec(
                        *command,
                        cwd=ROOT,
                        env=environment_of(peer, broker),
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
            yield [process.pid for process in started]
            if dead := [each.pid for each in started if each.returncode is not None]:
                raise BenchError(f"{len(dead)} processes of {peer.name} ended by themselves")
        except BenchError as problem:
            output.seek(0)
            said = output.read()[-3000:].decode(errors="replace").strip()
            raise BenchError(f"{problem}; they said:\n{said}") from None
        finally:
            await _stop(started)


async def _stop(started: Sequence[asyncio.subprocess.Process]) -> None:
    """End processes as Kubernetes does; the first one, which consumes the outcomes, last."""
    for process in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _describe(one: Round) -> str:
    text = f"{one.rate:.0f} messages/s; CPU a message: {one.cpu:.3f} ms"
    if one.broker_cpu is not None and one.others is not None:
        text += f", {one.broker_cpu:.3f} ms of RabbitMQ; others had {one.others:.0%} of the CPUs"
    return text


def _report(rounds: dict[str, list[Round]], report: Report) -> Outcome:
    spread = {
        f"{name}_per_second": Spread.of([one.rate for one in each]) for name, each in rounds.items()
    }
    for peer in (DRAMATIQ, DRAMATIQ_QUORUM, CELERY):
        pairs = zip(rounds[OURS], rounds[peer], strict=True)
        spread[f"vs_{peer}"] = Spread.of([ratio(mine.rate, its.rate) for mine, its in pairs])
    report.spreads("messages a second; ratios of the rounds", spread)
    cpu = {name: _middle_cpu(each) for name, each in rounds.items()}
    report.table(
        "CPU time a message, ms (medians)",
        ["", "workers", "RabbitMQ"],
        [(name, *(value for value in each.values())) for name, each in cpu.items()],
    )
    return Outcome(
        bench="worker",
        figures={name: s.middle for name, s in spread.items() if not name.startswith("vs_")},
        ratios={name: s.middle for name, s in spread.items() if name.startswith("vs_")},
        spread=spread,
        details={"cpu_ms_per_message": cpu},
    )


def _middle_cpu(rounds: Sequence[Round]) -> dict[str, float]:
    found = {"workers": significant(median(one.cpu for one in rounds), 3)}
    brokers = [one.broker_cpu for one in rounds if one.broker_cpu is not None]
    if brokers:
        found["rabbitmq"] = significant(median(brokers), 3)
    return found


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "worker",
        _run_command,
        help="Measure messages a second of two worker processes, without the operator.",
    )
    add_number(parser, "--messages", 15_000, "messages of a round", minimum=1000)
    add_number(parser, "--rounds", 5, "rounds")
    add_number(parser, "--slots", None, "what each of our workers runs at once")
    parser.add_argument(
        "--everywhere",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also our handlers in threads and on the loop (the default)",
    )


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(
        messages=options.messages,
        rounds=options.rounds,
        slots=options.slots,
        everywhere=options.everywhere,
    )
    if options.quick:
        settings = replace(settings, messages=min(options.messages, 2000), rounds=1)
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        stage=broker_only,
    )
