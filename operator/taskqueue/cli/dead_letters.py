"""``python -m taskqueue dead-letters``: list, redrive and purge what was given up.

Exit codes: 0 done, 1 not (all) done, 2 wrong use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from taskqueue.amqp.connection import Connection
    from taskqueue.cli.connect import QueueTarget

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    help="Messages that were given up: look at them, run them again, delete them.",
)


class OutputFormat(StrEnum):
    """How a list is printed."""

    TABLE = "table"
    JSON = "json"


def _key(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise typer.BadParameter("give NAMESPACE/NAME of a TaskQueue, such as shop/thumbnails")
    return namespace, name


Queue = Annotated[
    str, typer.Argument(metavar="NAMESPACE/QUEUE", help="The TaskQueue.", show_default=False)
]
BrokerUri = Annotated[
    str | None,
    typer.Option(
        envvar="TASKQUEUE_BROKER_URI",
        help="Address of the broker (amqp:// or amqps://) in place of the TaskQueue's Secret: for "
        "use outside the cluster, and for queues whose TaskQueue is gone.",
        show_default=False,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Outside a cluster: how to reach the API server.",
        show_default=False,
    ),
]


@app.command("list")
def list_letters(
    queue: Queue,
    limit: Annotated[int, typer.Option(min=1, help="Show no more than this.")] = 50,
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="How to print.")
    ] = OutputFormat.TABLE,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the beginning of each payload.")
    ] = False,
    broker_uri: BrokerUri = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what was given up, oldest first; the letters stay where they are."""
    from taskqueue.cli.output import as_json, console, show
    from taskqueue.direct.dead_letters import read_letters

    place = _place(queue, broker_uri, kubeconfig)
    letters = _run(place, lambda connection: read_letters(connection, *place.key))
    if output is OutputFormat.JSON:
        typer.echo(as_json(letters, limit=limit, verbose=verbose))
    else:
        show(console(), place.name, letters, limit=limit, verbose=verbose)


@app.command()
def redrive(
    queue: Queue,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="MESSAGE_ID", help="Only this letter; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Redrive no more than this.")] = 1000,
    broker_uri: BrokerUri = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Have direct messages run again. Letters of Tasks stay: create the Task anew."""
    from taskqueue.cli.output import redriven_text
    from taskqueue.direct import dead_letters

    place = _place(queue, broker_uri, kubeconfig)
    chosen = frozenset(ids) if ids else None
    told = _run(
        place,
        lambda connection: dead_letters.redrive(connection, *place.key, ids=chosen, limit=limit),
    )
    for line in redriven_text(place.key, told):
        typer.echo(line)
    if told.refused or told.not_found:
        raise typer.Exit(1)


@app.command()
def purge(
    queue: Queue,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    broker_uri: BrokerUri = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete all dead letters of a TaskQueue."""
    import sys

    from taskqueue.direct import dead_letters

    place = _place(queue, broker_uri, kubeconfig)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to ask: give --yes", param_hint="--yes")
        found = _run(place, lambda connection: dead_letters.count(connection, *place.key))
        typer.confirm(f"Delete {found} dead letters of {place.name} for good?", abort=True)
    purged = _run(place, lambda connection: dead_letters.purge(connection, *place.key))
    typer.echo(f"{purged} dead letters of {place.name} deleted.")


def _place(queue: str, broker_uri: str | None, kubeconfig: Path | None) -> QueueTarget:
    from taskqueue.cli.connect import QueueTarget

    return QueueTarget(_key(queue), broker_uri or None, str(kubeconfig) if kubeconfig else None)


def _run(place: QueueTarget, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something with the broker of a TaskQueue; end the command if it cannot be done."""
    import asyncio

    from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
    from taskqueue.cli.connect import CommandFailed, connected
    from taskqueue.direct.dead_letters import NoDeadQueue

    async def do() -> T:
        async with connected(place) as connection:
            return await work(connection)

    try:
        return asyncio.run(do())
    except (CommandFailed, NoDeadQueue, BrokerUnavailable, ChannelRefused) as problem:
        typer.echo(f"Error: {problem}", err=True)
        raise typer.Exit(1) from problem
