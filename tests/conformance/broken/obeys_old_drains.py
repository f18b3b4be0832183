"""Obeys a command to drain that was sent before it started."""

from __future__ import annotations

from taskqueue.worker.command_consumer import CommandConsumer
from tests.conformance.broken import start


def _handle_drain(self: CommandConsumer, identity: str | int) -> None:
    """Check nothing but the name of the pod."""
    self._on_drain()


if __name__ == "__main__":
    CommandConsumer._handle_drain = _handle_drain  # type: ignore[method-assign]
    start()
