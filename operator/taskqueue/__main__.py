"""The entry point: ``python -m taskqueue``.

A worker's start is on the way of the first task at zero workers, so its command is recognised
before the command line library is imported; `taskqueue.cli.main` lists it too.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["worker"]:
        from taskqueue.worker.main import main as run_worker

        sys.exit(run_worker(arguments[1:], os.environ))
    from taskqueue.cli.main import app

    app(prog_name="taskqueue")


if __name__ == "__main__":
    main()
