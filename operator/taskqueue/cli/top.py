"""`top`: the TaskQueues with their backlog, rate and workers; again and again with ``--watch``."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from taskqueue.cli.arguments import CommandParsers, add_command
from taskqueue.cli.kubectl import QUEUES, Object
from taskqueue.cli.selection import duration
from taskqueue.cli.style import has_colour, paint
from taskqueue.cli.target import add_target, api_of
from taskqueue.cli.text_table import table

#: Goes to the upper left corner, and clears what is below.
_HOME = "\033[H\033[J"
#: The other screen of a terminal, without a cursor, and back.
_ENTER, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"


def add_commands(commands: CommandParsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "top", _top, help="Show TaskQueues: backlog, rate, workers and their slots."
    )
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="names (default: all)")
    parser.add_argument("--workers", action="store_true", help="show the workers, a line for each")
    parser.add_argument("--watch", "-w", action="store_true", help="until Ctrl-C, on a full screen")
    parser.add_argument(
        "--interval",
        type=duration,
        default=2.0,
        metavar="DURATION",
        help="between two looks with --watch (default: 2s)",
    )
    add_target(parser, everywhere=True)


def _top(options: argparse.Namespace) -> int:
    if not options.watch:
        for line in _table_lines(options):
            print(line)
        return 0
    if not sys.stdout.isatty():
        options.parser.error("--watch needs a terminal: leave it out, or use watch(1)")
    sys.stdout.write(_ENTER)
    try:
        while True:
            size = shutil.get_terminal_size()
            stamp = time.strftime("%H:%M:%S")
            lines = [f"TaskQueues at {stamp}; Ctrl-C ends", "", *_table_lines(options)]
            fitting = [line if "\033" in line else line[: size.columns] for line in lines]
            sys.stdout.write(_HOME + "\n".join(fitting[: size.lines - 1]))
            sys.stdout.flush()
            time.sleep(options.interval)
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _table_lines(options: argparse.Namespace) -> list[str]:
    found = api_of(options).objects(QUEUES, *options.queues)
    everywhere = options.all_namespaces
    if options.workers:
        return worker_table(found, with_namespace=everywhere)
    return queue_table(found, with_namespace=everywhere, colour=has_colour(sys.stdout))


def queue_table(queues: Sequence[Object], *, with_namespace: bool, colour: bool) -> list[str]:
    """Return the lines of a table of TaskQueues; those that are not Ready stand out."""
    header = ["NAME", "READY", "WAITING", "RUNNING", "SLOTS", "WORKERS", "PER MIN", "MEAN RUN"]
    header += ["SUCCEEDED", "FAILED", "DEAD"]
    rows = []
    for queue in sorted(queues, key=_backlog, reverse=True):
        status = queue.get("status") or {}
        totals = status.get("totals") or {}
        wanted, there = status.get("desiredReplicas"), status.get("replicas")
        workers = "-" if there is None else str(there)
        if wanted is not None and wanted != there:
            workers += f"/{wanted}"
        mean = status.get("meanRunSeconds")
        row = [
            queue["metadata"]["name"],
            _ready(status),
            str(_backlog(queue)),
            str(status.get("running", 0)),
            str(sum(one.get("slots", 0) for one in status.get("workers", []))),
            workers,
            _number(status.get("throughputPerMinute")),
            "-" if mean is None else f"{mean:.3g}s",
            str(totals.get("succeeded", 0)),
            str(totals.get("failed", 0)),
            str(status.get("deadLetters", 0)),
        ]
        rows.append([queue["metadata"]["namespace"], *row] if with_namespace else row)
    lines = table(["NAMESPACE", *header] if with_namespace else header, rows)
    at = 2 if with_namespace else 1
    unready = {number for number, row in enumerate(rows, 1) if row[at] == "False"}
    return [
        paint(line, "bold" if not number else "red" if number in unready else "", wanted=colour)
        for number, line in enumerate(lines)
    ]


def worker_table(queues: Sequence[Object], *, with_namespace: bool) -> list[str]:
    """Return the lines of a table of the workers that have registered."""
    header = ["QUEUE", "POD", "NODE", "CPUS", "SLOTS", "HANDLERS"]
    rows = []
    for queue in queues:
        for one in (queue.get("status") or {}).get("workers", []):
            row = [
                queue["metadata"]["name"],
                one.get("pod", "-"),
                one.get("node") or "-",
                f"{one.get('cpus', 0):g}",
                str(one.get("slots", 0)),
                ", ".join(one.get("handlers", [])),
            ]
            rows.append([queue["metadata"]["namespace"], *row] if with_namespace else row)
    return table(["NAMESPACE", *header] if with_namespace else header, rows)


def _backlog(queue: Mapping[str, Any]) -> int:
    status = queue.get("status") or {}
    return int(status.get("pending", 0)) + int(status.get("ready", 0))


def _ready(status: Mapping[str, Any]) -> str:
    found = [one["status"] for one in status.get("conditions", []) if one["type"] == "Ready"]
    return str(found[0]) if found else "-"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
