"""Reads the operator's commands, and ignores them."""

from __future__ import annotations

from taskqueue.contract.command import WorkerCommand
from taskqueue.worker.runtime import Runtime
from tests.conformance.broken import start

_on_command = Runtime.on_command


def _ignore(self: Runtime, command: WorkerCommand) -> None:
    """Take notice only of what is no command about an attempt."""
    if command.is_announcement:
        _on_command(self, command)


if __name__ == "__main__":
    Runtime.on_command = _ignore  # type: ignore[method-assign]
    start()
