"""The commands of ``python -m taskqueue``, for people: help, errors in colour.

Each command imports what it runs inside its function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskqueue import __version__
from taskqueue.cli import dead_letters

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """A task queue for Kubernetes over RabbitMQ."""


app.add_typer(dead_letters.app, name="dead-letters")


@app.command()
def crds(
    directory: Annotated[
        Path, typer.Option(help="The folder the CustomResourceDefinitions are written to.")
    ] = Path("crds"),
    reference: Annotated[
        Path | None, typer.Option(help="The folder their reference in Markdown is written to.")
    ] = None,
) -> None:
    """Write the CustomResourceDefinitions, generated from the models of the API."""
    from taskqueue.api.crds import write_crds
    from taskqueue.api.reference import write_reference

    written = write_crds(directory)
    if reference is not None:
        written.append(write_reference(reference))
    for path in written:
        typer.echo(path)


@app.command()
def operator() -> None:
    """Run the operator; settings come from the environment."""
    import asyncio

    import uvloop

    from taskqueue import logs
    from taskqueue.controller.manager import OperatorSettings, serve

    logs.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise typer.Exit(runner.run(serve(OperatorSettings.from_environment())))


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
def worker(
    arguments: Annotated[list[str] | None, typer.Argument(help="See its own --help.")] = None,
) -> None:
    """Run a worker for modules, commands or URLs; settings come from the environment."""
    import os

    from taskqueue.worker.main import main as run_worker

    raise typer.Exit(run_worker(arguments or [], os.environ))
