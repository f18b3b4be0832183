"""Takes what comes by the exchange for direct messages for a Task's, if its headers say so."""

from __future__ import annotations

from typing import Any

from pika.spec import BasicProperties

from taskqueue.contract import work
from taskqueue.contract.names import WORK_EXCHANGE
from taskqueue.worker import delivery_handler
from tests.conformance.broken import start

_parse = work.parse_work


def _parse_by_headers(properties: BasicProperties, body: bytes, *, exchange: str) -> Any:
    return _parse(properties, body, exchange=WORK_EXCHANGE)


if __name__ == "__main__":
    delivery_handler.parse_work = _parse_by_headers  # type: ignore[attr-defined]
    start()
