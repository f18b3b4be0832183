"""Reads the broker's credentials once, when it starts."""

from __future__ import annotations

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.worker.broker_source import BrokerSource
from tests.conformance.broken import start

_read = BrokerSource.read
_kept: list[BrokerParameters] = []


def _read_once(self: BrokerSource) -> BrokerParameters:
    if not _kept:
        _kept.append(_read(self))
    return _kept[0]


if __name__ == "__main__":
    BrokerSource.read = _read_once  # type: ignore[method-assign]
    start()
