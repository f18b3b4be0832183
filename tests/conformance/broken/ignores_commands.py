"""Reads the operator's commands, and ignores them."""

from __future__ import annotations

from taskqueue.contract.command import WorkerCommand
from taskqueue.worker.runtime import Runtime
from tests.conformance.broken import start


def _ignore(self: Runtime, command: WorkerCommand) -> None:
    """Do nothing."""


if __name__ == "__main__":
    Runtime.on_command = _ignore  # type: ignore[method-assign]
    start()
