"""What ``python -m taskqueue worker`` is told: modules, commands, URLs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from taskqueue.worker.loading import StartError
from taskqueue.worker.settings import VARIABLES

_EPILOG = """\
At least one of MODULE, --command and --http is needed; they go together. Names of handlers are
unique. Settings are read from the environment:

{variables}

Exit codes: 0 after an orderly stop, 1 when it could not start, 2 for wrong arguments, 75 when it
ended itself for a keyed attempt that could not be stopped.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    """The command line.

    Attributes:
        modules: whose handlers are served.
        commands: values of ``--command``.
        targets: values of ``--http``.
        http_anywhere: URLs may lead out of the pod.
    """

    modules: Sequence[str] = ()
    commands: Sequence[str] = ()
    targets: Sequence[str] = ()
    http_anywhere: bool = False

    @classmethod
    def parse(cls, words: Sequence[str]) -> WorkerArguments:
        """Read the words after ``worker``.

        Raises:
            StartError: there is nothing to serve.
            SystemExit: the help was asked for, or an argument is wrong, and that has been told.
        """
        if any(word.startswith("-") for word in words):
            arguments = _parse_options(words)
        else:
            arguments = cls(modules=tuple(words))
        if not (arguments.modules or arguments.commands or arguments.targets):
            raise StartError(
                "nothing to serve: give a module, python -m taskqueue worker MODULE…, or --command "
                "or --http; --help tells all"
            )
        return arguments


def _parse_options(words: Sequence[str]) -> WorkerArguments:
    import argparse  # somebody waits for a worker's start, and most have no option

    parser = argparse.ArgumentParser(
        prog="python -m taskqueue worker",
        description="Take messages from one TaskQueue, run them, and report.",
        epilog=_EPILOG.format(variables=_variables()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="MODULE",
        help="import it, and serve the functions it marks with @task",
    )
    parser.add_argument(
        "--command",
        action="append",
        default=[],
        metavar="'NAME=PROGRAM ARGUMENT…'",
        help="serve handler NAME with a program: payload as JSON on stdin, or in the file "
        "{payload} stands for; may be repeated",
    )
    parser.add_argument(
        "--http",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="serve handler NAME by a POST to a service in this pod; NAME *: every other handler, "
        "its name is appended to the URL; may be repeated",
    )
    parser.add_argument(
        "--http-anywhere",
        action="store_true",
        help="allow --http to lead out of the pod",
    )
    found = parser.parse_intermixed_args(words)
    return WorkerArguments(
        modules=tuple(found.modules),
        commands=tuple(found.command),
        targets=tuple(found.http),
        http_anywhere=found.http_anywhere,
    )


def _variables() -> str:
    lines = []
    for name, meaning in VARIABLES.items():
        first, *more = textwrap.wrap(meaning, 58)
        lines += [f"  {name:35} {first}", *(f"{'':38}{each}" for each in more)]
    return "\n".join(lines)
