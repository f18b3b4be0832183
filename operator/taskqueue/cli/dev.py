"""The command `dev`: handlers on a desk, with neither cluster nor broker."""

from __future__ import annotations

import argparse
from pathlib import Path

from taskqueue.cli.arguments import CommandParsers, add_command, at_least
from taskqueue.cli.style import has_colour
from taskqueue.limits import DEV_PORT


def add_commands(commands: CommandParsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "dev",
        _dev,
        help="Run the handlers of modules on this machine, with neither cluster nor broker.",
    )
    parser.add_argument(
        "modules", nargs="+", metavar="MODULE", help="import it, and serve what it marks with @task"
    )
    parser.add_argument(
        "--filename",
        "-f",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="apply the Tasks, TaskQueues and ConfigMaps of a file or a folder, again when it "
        "changes; may be repeated",
    )
    parser.add_argument(
        "--port",
        type=at_least(0),
        default=DEV_PORT,
        metavar="N",
        help="of the API on 127.0.0.1, for --dev of other commands; 0: any (default: %(default)s)",
    )
    parser.add_argument(
        "--slots", type=at_least(1), metavar="N", help="attempts at once (default: CPUs)"
    )
    parser.add_argument(
        "--threads",
        action="store_true",
        help="run sync handlers in threads of this process, where a debugger finds them",
    )
    parser.add_argument(
        "--strict-queues",
        action="store_true",
        help="make no TaskQueue that no file has: its Tasks are Blocked, as in a cluster",
    )
    parser.add_argument(
        "--no-watch", action="store_true", help="do not start again when a file changes"
    )
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="show the log of operator and worker, too"
    )


def _dev(options: argparse.Namespace) -> int:
    import sys

    from taskqueue.dev.main import main, worker_settings
    from taskqueue.dev.session import DevOptions
    from taskqueue.worker.variables import SettingsError

    for path in options.filename:
        if not path.exists():
            options.parser.error(f"there is no file {str(path)!r}: check the path")
    try:
        settings = worker_settings(slots=options.slots, threads=options.threads)
    except SettingsError as error:
        options.parser.error(str(error))
    return main(
        DevOptions(
            modules=tuple(options.modules),
            files=tuple(options.filename),
            port=options.port,
            strict_queues=options.strict_queues,
            watch=not options.no_watch,
        ),
        settings,
        colour=has_colour(sys.stdout),
        verbose=options.verbose,
    )
