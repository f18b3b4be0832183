"""How long a process takes from our fork server, and from the standard library's.

A child for handlers: from the request until its first byte arrives here, and from the end of its
input until its end is known here. A command: from the request until its end is known. Ours come
from `taskqueue.worker.executors.fork_server`, the others from `multiprocessing`'s fork server, with
the same modules preloaded, and from `asyncio.create_subprocess_exec` in a session of its own. Who
is first changes from round to round.

Ours do more: a child is the head of a process group and a subreaper, dies with its server, blocks
signals until it handles them, and has run its start hooks; an end is known when everything that the
process has started has ended as well.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from statistics import median

from taskqueue.cli.arguments import CommandParsers
from taskqueue.logs import LogFormat
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig
from taskqueue.worker.executors.process_spawner import ProcessExit, ProcessSpawner
from tests.bench.codec import interval
from tests.bench.command_line import add_benchmark, add_number, measure_here
from tests.bench.deadline import within
from tests.bench.peers.child import send_a_byte
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, significant

OURS, STDLIB = "taskqueue", "stdlib"
_MODULE = "tests.bench.peers.handlers"
_PRELOADED = ["taskqueue.worker.executors.child", _MODULE, "tests.bench.peers.child"]
_PROGRAM = "true"
_SECONDS = 60.0

#: Seconds until a child's first byte, until its end is known, and for a command.
Times = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured: rounds, and processes of each kind in one."""

    rounds: int
    processes: int


async def run(settings: Settings, report: Report) -> Outcome:
    """Measure both sides in turn; needs no cluster."""
    loop = asyncio.get_running_loop()
    config = ForkServerConfig(modules=[_MODULE], log_format=LogFormat.JSON, log_level="INFO")
    spawner = ProcessSpawner(config.launch_by_exec(), config.launch_by_exec, loop)
    # `multiprocessing` would import this command again in each child.
    main = sys.modules["__main__"]
    main.__spec__, main.__file__ = None, None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    sides: dict[str, Callable[[], Awaitable[Times]]] = {
        OURS: lambda: _ours(spawner, loop),
        STDLIB: lambda: _stdlib(context, loop),
    }
    found: dict[str, list[Times]] = {OURS: [], STDLIB: []}
    try:
        for side in sides.values():  # its server starts with the first
            await side()
        for number in range(settings.rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                async with within(_SECONDS, f"a round of {name}"):
                    times = [await sides[name]() for _ in range(settings.processes)]
                start, end, command = (median(each) for each in zip(*times, strict=True))
                found[name].append((start, end, command))
            report.say(f"round {number + 1} of {settings.rounds}")
    finally:
        spawner.close()
    return _outcome(found, report)


async def _ours(spawner: ProcessSpawner, loop: asyncio.AbstractEventLoop) -> Times:
    begin = time.perf_counter()
    connection, theirs = socket.socketpair()
    connection.setblocking(False)
    ended: asyncio.Future[ProcessExit] = loop.create_future()
    spawner.child([theirs.detach()], ended.set_result)
    await loop.sock_recv(connection, 1)
    running = time.perf_counter()
    connection.shutdown(socket.SHUT_WR)
    await ended
    closed = time.perf_counter()
    connection.close()
    command: asyncio.Future[ProcessExit] = loop.create_future()
    nothing = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]
    spawner.command([_PROGRAM], {}, nothing, command.set_result)
    await command
    return running - begin, closed - running, time.perf_counter() - closed


async def _stdlib(context: ForkServerContext, loop: asyncio.AbstractEventLoop) -> Times:
    begin = time.perf_counter()
    connection, theirs = socket.socketpair()
    connection.setblocking(False)
    process = context.Process(target=send_a_byte, args=(theirs,))
    process.start()
    theirs.close()
    await loop.sock_recv(connection, 1)
    running = time.perf_counter()
    connection.shutdown(socket.SHUT_WR)
    ended = asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    await ended.wait()
    loop.remove_reader(process.sentinel)
    process.join()
    closed = time.perf_counter()
    process.close()
    connection.close()
    command = await asyncio.create_subprocess_exec(
        _PROGRAM,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    await command.wait()
    return running - begin, closed - running, time.perf_counter() - closed


def _outcome(found: dict[str, list[Times]], report: Report) -> Outcome:
    figures, spread, ratios, intervals = {}, {}, {}, {}
    for at, what in enumerate(("start", "end", "command")):
        values = {name: [times[at] * 1e3 for times in rounds] for name, rounds in found.items()}
        for name, each in values.items():
            figures[f"{what}_{name}_ms"] = median(each)
            spread[f"{what}_{name}_ms"] = Spread.of(each)
        paired = [ours / other for ours, other in zip(values[OURS], values[STDLIB], strict=True)]
        ratios[f"{what}_vs_stdlib"] = median(paired)
        intervals[f"{what}_vs_stdlib"] = [significant(value) for value in interval(paired)]
    report.spreads("milliseconds", spread)
    return Outcome("spawn", figures, ratios, spread, {"interval": intervals})


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "spawn",
        _run_command,
        help="Measure how long processes take from our fork server and the standard library's.",
    )
    add_number(parser, "--processes", 20, "processes of each kind in a round")
    add_number(parser, "--rounds", 15, "rounds")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(rounds=options.rounds, processes=options.processes)
    if options.quick:
        settings = Settings(rounds=2, processes=min(options.processes, 3))
    return measure_here(lambda report: run(settings, report))
