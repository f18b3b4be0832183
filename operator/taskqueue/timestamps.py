"""Converts times between seconds since the epoch and RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

#: Returns the present time in seconds; wall time unless stated otherwise.
Clock = Callable[[], float]

Precision = Literal["seconds", "milliseconds", "microseconds"]


@lru_cache(maxsize=512)  # the same few times appear several times in one status
def to_rfc3339(seconds: float, precision: Precision = "milliseconds") -> str:
    """Return a time as RFC 3339 in UTC, with exactly the digits of the precision.

    Args:
        seconds: since the epoch.
        precision: of the result; what is finer is cut.

    Raises:
        OverflowError, ValueError, OSError: a time that no calendar has.
    """
    at = datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


def from_rfc3339(text: str) -> float:
    """Return an RFC 3339 time as seconds since the epoch.

    Raises:
        ValueError: it is not a time.
    """
    return datetime.fromisoformat(text).timestamp()


def in_utc(text: str) -> str:
    """Return an RFC 3339 time in UTC with whole seconds; "" if it is none."""
    if not text:
        return ""
    try:
        return to_rfc3339(from_rfc3339(text), "seconds")
    except (ValueError, OverflowError, OSError):
        return ""
