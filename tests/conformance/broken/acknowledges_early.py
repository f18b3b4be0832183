"""Acknowledges once an outcome is published, without waiting for the confirm."""

from __future__ import annotations

from taskqueue.contract.outgoing import Outgoing
from taskqueue.worker.outcome_outbox import OnConfirmed, Reporter
from tests.conformance.broken import start

_report = Reporter.report


def _report_and_go_on(self: Reporter, message: Outgoing, on_confirmed: OnConfirmed) -> None:
    _report(self, message, lambda: None)
    on_confirmed()


if __name__ == "__main__":
    Reporter.report = _report_and_go_on  # type: ignore[method-assign]
    start()
