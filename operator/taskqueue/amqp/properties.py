"""The properties of an AMQP message, for code that must not import pika."""

from __future__ import annotations

from typing import Any

from pika import data
from pika.spec import BasicProperties

__all__ = ["BasicProperties", "encoded_bytes"]


def encoded_bytes(name: str, value: Any) -> int | None:
    """Return how many bytes a header takes in a message; None: it cannot be encoded."""
    try:
        return int(data.encode_table([], {name: value})) - _TABLE_LENGTH
    except Exception:  # pika raises whatever comes of it
        return None


#: Of the length in front of a table.
_TABLE_LENGTH = 4
