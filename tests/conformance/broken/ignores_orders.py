"""Reads the operator's orders, and does nothing about them."""

from __future__ import annotations

from taskqueue.contract.command import WorkerCommand
from taskqueue.worker.runtime import Runtime
from tests.conformance.broken import start


def _ignore(self: Runtime, order: WorkerCommand) -> None:
    """Look away."""


if __name__ == "__main__":
    Runtime.ordered = _ignore  # type: ignore[method-assign]
    start()
