"""The entry point: ``python -m taskqueue``.

The first task after a pool was at zero waits for a worker to start, so ``worker`` is recognised
before anything of the command line is imported; `taskqueue.cli.main` lists it in its help. So is
``gateway``, which the command line does without.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:]
    if words[:1] == ["worker"]:
        from taskqueue.worker.main import main as run_worker

        sys.exit(run_worker(words[1:], os.environ))
    if words[:1] == ["gateway"]:
        from taskqueue.gateway.main import main as run_gateway

        sys.exit(run_gateway(words[1:], os.environ))
    from taskqueue.cli.main import main as run_command

    sys.exit(run_command(words))


if __name__ == "__main__":
    main()
