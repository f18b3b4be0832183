"""Commands of a command line, and types of their arguments, for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

#: What `argparse.ArgumentParser.add_subparsers` returns: commands are added to it.
CommandParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

#: Runs a command and returns its exit code.
Run: TypeAlias = Callable[[argparse.Namespace], int]


def add_group(parser: argparse.ArgumentParser) -> CommandParsers:
    """Give ``parser`` commands; without one of them it prints its help and exits with 2."""

    def print_help(options: argparse.Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(run=print_help)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def add_command(
    commands: CommandParsers, name: str, run: Run, *, help: str
) -> argparse.ArgumentParser:
    """Add a command that ``run`` executes; ``help`` is its line in the list and its description.

    ``run`` finds its parser in the options, as ``parser``, and reports wrong usage by its `error`.
    """
    parser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    return parser


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers of at least ``minimum``, which is not negative."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of at least {minimum}"
            )
        return int(text)

    return parse


def existing_file(text: str) -> Path:
    """Parse the path of a file that exists."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}: check the path")
    return path


def queue_name(text: str) -> tuple[str, str]:
    """Parse ``NAMESPACE/NAME`` of a TaskQueue."""
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise argparse.ArgumentTypeError(
            f"{text!r} does not name a TaskQueue: give NAMESPACE/NAME, such as shop/thumbnails"
        )
    return namespace, name
