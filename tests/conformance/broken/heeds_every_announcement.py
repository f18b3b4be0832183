"""Writes events as the operator of whichever installation announced itself last reads them."""

from __future__ import annotations

from dataclasses import replace

from taskqueue.contract.command import WorkerCommand
from taskqueue.worker.run_reporter import RunReporter
from tests.conformance.broken import start

_on_announcement = RunReporter.on_announcement


def _heed(self: RunReporter, announcement: WorkerCommand) -> None:
    _on_announcement(self, replace(announcement, installation=self._installation))


if __name__ == "__main__":
    RunReporter.on_announcement = _heed  # type: ignore[method-assign]
    start()
