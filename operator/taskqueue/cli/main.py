"""The commands of ``python -m taskqueue``.

The parser is built from the standard library alone; each command imports what it runs when it runs,
so that ``--help`` and wrong arguments are answered at once.

Exit codes: 0 done, 1 not (all) done, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from taskqueue import __version__
from taskqueue.cli import (
    batches,
    completion,
    dead_letters,
    dev,
    lint,
    queues,
    schedules,
    tasks,
    top,
    version,
)
from taskqueue.cli.arguments import CommandParsers, add_command, add_group
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.text_table import printable


def main(words: Sequence[str]) -> int:
    """Run the command that ``words`` name and return its exit code.

    Raises:
        SystemExit: 0 after a help text or the version, 2 for wrong usage.
    """
    if words[:1] == ["__complete"]:  # what a shell asks: no command that people would see
        print("\n".join(completion.completions(make_parser(), words[1:])))
        return 0
    options = make_parser().parse_args(words)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except CommandFailed as error:
        print(f"taskqueue: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="taskqueue",
        description="A task queue for Kubernetes over RabbitMQ.",
        epilog="Run 'taskqueue COMMAND --help' for the options of a command.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=__version__,
        help="print the version and exit",
    )
    commands = add_group(parser)
    tasks.add_commands(commands)
    queues.add_commands(commands)
    batches.add_commands(commands)
    schedules.add_commands(commands)
    top.add_commands(commands)
    lint.add_commands(commands)
    dev.add_commands(commands)
    _add_crds(commands)
    add_command(
        commands,
        "operator",
        _run_operator,
        help="Run the operator; settings come from the environment.",
    )
    # Listed for the help only: `taskqueue.__main__` starts these two without this module.
    commands.add_parser(
        "worker",
        help="Run a worker for modules, commands or URLs; settings come from the environment.",
        add_help=False,
    )
    commands.add_parser(
        "gateway",
        help="Serve Tasks and TaskQueues over HTTP; settings come from the environment.",
        add_help=False,
    )
    dead_letters.add_commands(commands)
    completion.add_commands(commands)
    version.add_commands(commands)
    return parser


def _add_crds(commands: CommandParsers) -> None:
    parser = add_command(
        commands,
        "crds",
        _write_crds,
        help="Write the CustomResourceDefinitions, generated from the models of the API.",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("crds"),
        help="folder for the CustomResourceDefinitions (default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIRECTORY",
        help="folder for their reference in Markdown (default: none is written)",
    )


def _write_crds(options: argparse.Namespace) -> int:
    from taskqueue.api.crds import write_crds
    from taskqueue.api.reference import write_reference

    written = write_crds(options.directory)
    if options.reference is not None:
        written.append(write_reference(options.reference))
    for path in written:
        print(path)
    return 0


def _run_operator(options: argparse.Namespace) -> int:
    import asyncio
    import gc

    import uvloop

    from taskqueue import logs
    from taskqueue.controller.manager import OperatorSettings, serve

    try:
        settings = OperatorSettings.from_environment()
    except ValueError as problem:
        options.parser.error(str(problem))
    logs.configure()
    # Nearly all that a Task allocates is freed by its reference count; looking for cycles in it
    # as often as by default is wasted CPU.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))
