"""Python workers with one defect each: the suite must find it, and nothing else."""

from __future__ import annotations

import runpy
import sys


def start() -> None:
    """Run the Python worker with the suite's handlers."""
    sys.argv = ["taskqueue", "worker", "tests.conformance.workers.python_handlers"]
    runpy.run_module("taskqueue", run_name="__main__", alter_sys=True)
