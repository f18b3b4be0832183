"""The arguments of ``python -m taskqueue worker``: modules, commands, URLs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskqueue.worker.loading import StartError

_EPILOG = """\
Give at least one of MODULE, --command and --http; they can be combined. Names of handlers must
be unique. Settings are read from these environment variables [default]:

{variables}

Exit codes: 0 after an orderly stop, 1 when it could not start, 2 for wrong arguments, 70 when
something kept it from ending in its time, 75 when it ended itself because a keyed attempt could not
be stopped.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    """The parsed command line.

    Attributes:
        modules: names of the modules whose handlers are served.
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
            SystemExit: ``--help`` was given (0), or an argument is wrong (2); the text is printed.
        """
        if any(word.startswith("-") for word in words):
            arguments = _parse_options(words)
        else:
            arguments = cls(modules=tuple(words))
        if not (arguments.modules or arguments.commands or arguments.targets):
            raise StartError(
                "nothing to serve: give a module, python -m taskqueue worker MODULE…, or --command "
                "or --http; see --help"
            )
        return arguments


def _parse_options(words: Sequence[str]) -> WorkerArguments:
    import argparse  # only here: a task may wait for the start, and most workers have no option

    from taskqueue.worker.settings_table import help_text

    parser = argparse.ArgumentParser(
        prog="python -m taskqueue worker",
        description="Run the Tasks and messages of one TaskQueue, and report their outcomes.",
        epilog=_EPILOG.format(variables=help_text()),
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
        "whose path replaces {payload}; may be repeated",
    )
    parser.add_argument(
        "--http",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="serve handler NAME by a POST to a service in this pod; NAME *: all other handlers, "
        "with the name appended to the URL; may be repeated",
    )
    parser.add_argument(
        "--http-anywhere",
        action="store_true",
        help="allow --http to leave the pod",
    )
    options = parser.parse_intermixed_args(words)
    return WorkerArguments(
        modules=tuple(options.modules),
        commands=tuple(options.command),
        targets=tuple(options.http),
        http_anywhere=options.http_anywhere,
    )
