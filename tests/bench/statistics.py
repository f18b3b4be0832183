"""Summary statistics of measurements: percentile, spread, ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest measured value that at least ``percent`` of all do not exceed.

    Always one of the values (the nearest-rank definition): it does not interpolate.

    Raises:
        ValueError: there are no values, or percent is outside 0 to 100.
    """
    if not values:
        raise ValueError("there are no values to take a percentile of")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}: it must be from 0 to 100")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median and maximum of repeated measurements."""

    low: float
    middle: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(min(values), median(values), max(values), len(values))

    def as_dict(self) -> dict[str, float]:
        """Return the spread as it is printed."""
        return {
            "min": significant(self.low),
            "median": significant(self.middle),
            "max": significant(self.high),
            "n": self.count,
        }


def significant(value: float, digits: int = 4) -> float:
    """Return the value rounded to significant digits, so as not to pretend precision."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def ratio(ours: float, theirs: float) -> float:
    """Return ours / theirs to four digits; infinite when theirs is 0."""
    return significant(ours / theirs) if theirs else math.inf
