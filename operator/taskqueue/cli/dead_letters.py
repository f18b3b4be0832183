"""``python -m taskqueue dead-letters``: list, redrive and purge dead letters.

Exit codes: 0 done, 1 not (all) done, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from taskqueue.cli.arguments import (
    CommandParsers,
    Run,
    add_command,
    add_group,
    at_least,
    existing_file,
    queue_name,
)

if TYPE_CHECKING:
    from taskqueue.amqp.connection import Connection
    from taskqueue.cli.connect import QueueTarget

T = TypeVar("T")

_BROKER_URI = "TASKQUEUE_BROKER_URI"
#: Bytes of each payload that ``list --verbose`` shows.
_PAYLOAD_BYTES = 200


def add_commands(commands: CommandParsers) -> None:
    """Add ``dead-letters`` and its commands."""
    text = "List, redrive and purge the messages that could not be processed."
    parser = commands.add_parser("dead-letters", help=text, description=text, allow_abbrev=False)
    group = add_group(parser)
    _add_list(group)
    _add_redrive(group)
    _add_purge(group)


def _add_list(group: CommandParsers) -> None:
    parser = _add_command(
        group, "list", _list, help="List dead letters, oldest first; they stay in their queue."
    )
    parser.add_argument(
        "--limit",
        type=at_least(1),
        default=50,
        metavar="N",
        help="show at most N (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        "-o",
        choices=("table", "json"),
        default="table",
        help="format of the list (default: %(default)s)",
    )
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="show the beginning of each payload"
    )


def _add_redrive(group: CommandParsers) -> None:
    parser = _add_command(
        group,
        "redrive",
        _redrive,
        help="Publish direct messages to the work queue again. Dead letters of Tasks stay: create "
        "the Task again.",
    )
    parser.add_argument(
        "--id",
        action="append",
        default=[],
        dest="ids",
        metavar="MESSAGE_ID",
        help="redrive only this message; may be repeated",
    )
    parser.add_argument(
        "--limit",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="redrive at most N (default: %(default)s)",
    )


def _add_purge(group: CommandParsers) -> None:
    parser = _add_command(group, "purge", _purge, help="Delete all dead letters of a TaskQueue.")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask for confirmation")


def _add_command(
    group: CommandParsers, name: str, run: Run, *, help: str
) -> argparse.ArgumentParser:
    parser = add_command(group, name, run, help=help)
    parser.add_argument("queue", type=queue_name, metavar="NAMESPACE/QUEUE", help="the TaskQueue")
    parser.add_argument(
        "--broker-uri",
        metavar="URI",
        help="address of the broker (amqp:// or amqps://), used instead of the TaskQueue's Secret: "
        "for use outside the cluster, and for queues whose TaskQueue was deleted "
        f"(default: ${_BROKER_URI})",
    )
    parser.add_argument(
        "--kubeconfig",
        type=existing_file,
        metavar="FILE",
        help="how to reach the API server (default: a pod's service account, $KUBECONFIG, or "
        "~/.kube/config)",
    )
    return parser


def _list(options: argparse.Namespace) -> int:
    from taskqueue.cli.output import as_json, console, print_table
    from taskqueue.direct.dead_letters import read_dead_letters

    target = _target(options)
    page = _run(
        target,
        lambda connection: read_dead_letters(connection, *target.key, body_bytes=_PAYLOAD_BYTES),
    )
    if options.output == "json":
        print(as_json(page, limit=options.limit, verbose=options.verbose))
    else:
        print_table(console(), target.name, page, limit=options.limit, verbose=options.verbose)
    return 0


def _redrive(options: argparse.Namespace) -> int:
    from taskqueue.cli.output import redrive_report
    from taskqueue.direct.dead_letters import redrive

    target = _target(options)
    ids = frozenset(options.ids) or None
    result = _run(
        target,
        lambda connection: redrive(connection, *target.key, ids=ids, limit=options.limit),
    )
    for line in redrive_report(target.key, result):
        print(line)
    return 1 if result.refused or result.not_found else 0


def _purge(options: argparse.Namespace) -> int:
    from taskqueue.direct.dead_letters import count, purge

    target = _target(options)
    if not options.yes:
        if not sys.stdin.isatty():
            options.parser.error("there is no terminal to ask for confirmation at: give --yes")
        found = _run(target, lambda connection: count(connection, *target.key))
        if not _is_confirmed(f"Delete {found} dead letters of {target.name} for good? [y/N]: "):
            print("Nothing was deleted.", file=sys.stderr)
            return 1
    purged = _run(target, lambda connection: purge(connection, *target.key))
    print(f"{purged} dead letters of {target.name} deleted.")
    return 0


def _is_confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _target(options: argparse.Namespace) -> QueueTarget:
    from taskqueue.cli.connect import QueueTarget

    broker_uri = options.broker_uri
    if broker_uri is None:
        broker_uri = os.environ.get(_BROKER_URI)
    return QueueTarget(
        options.queue,
        broker_uri=broker_uri or None,
        kubeconfig=str(options.kubeconfig) if options.kubeconfig else None,
    )


def _run(target: QueueTarget, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something with the broker of a TaskQueue.

    Raises:
        SystemExit: 1 when it cannot be done; standard error has the reason.
    """
    import asyncio

    from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
    from taskqueue.cli.connect import connect_to_broker
    from taskqueue.cli.errors import CommandFailed
    from taskqueue.direct.dead_letters import NoDeadQueue

    async def connect_and_work() -> T:
        async with connect_to_broker(target) as connection:
            return await work(connection)

    try:
        return asyncio.run(connect_and_work())
    except (CommandFailed, NoDeadQueue, BrokerUnavailable, ChannelRefused) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
