"""How many of a queue's Tasks have ended, how fast, and how long attempts take: pure meters.

A reading holds for a few seconds: the minute after the last Task then costs a dozen changes of the
status, not sixty, and an idle queue none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.model.task import Phase

_MINUTE = 60.0
#: How long a reading holds.
_HOLD_SECONDS = 5.0
#: The weight of a further attempt is one over this, once as many were seen.
_RECENT_ATTEMPTS = 50
#: Significant digits of the mean.
_DIGITS = 3


@dataclass(slots=True)
class Totals:
    """Finished Tasks of a queue, by final phase."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Totals:
        """Return where counting continues: what the status of a TaskQueue object says."""
        totals = (raw.get("status") or {}).get("totals") or {}
        return cls(**{name: int(totals.get(name, 0)) for name in cls.__slots__})

    def count(self, phase: Phase) -> None:
        """Count a Task that ended in this phase."""
        name = phase.value.lower()
        setattr(self, name, getattr(self, name) + 1)


@dataclass(frozen=True, slots=True)
class ThroughputReading:
    """What the meter shows; the mean is None until an attempt's time is known."""

    per_minute: int
    mean_run_seconds: float | None


class Throughput:
    """Counts ends by the second, and keeps an exponentially weighted mean of run times."""

    __slots__ = ("_attempts", "_ends", "_mean", "_reading", "_until")

    def __init__(self) -> None:
        self._ends: deque[tuple[int, int]] = deque()  # (second, ends within it), oldest first
        self._mean = 0.0
        self._attempts = 0
        self._reading = ThroughputReading(0, None)
        self._until = float("-inf")

    def on_task_ended(self, now: float, seconds: float | None) -> None:
        """Count a Task that ended.

        Args:
            now: seconds on any clock, never less than before.
            seconds: how long its last attempt ran; None: none did, or it is not known.
        """
        second = int(now)
        if self._ends and self._ends[-1][0] == second:
            self._ends[-1] = (second, self._ends[-1][1] + 1)
        else:
            self._ends.append((second, 1))
            self._drop_old_ends(now)
        if seconds is not None:
            self._attempts = min(self._attempts + 1, _RECENT_ATTEMPTS)
            self._mean += (seconds - self._mean) / self._attempts

    def read(self, now: float) -> ThroughputReading:
        """Return what the meter shows now: at most five seconds old."""
        if now >= self._until:
            self._drop_old_ends(now)
            self._until = now + _HOLD_SECONDS
            self._reading = ThroughputReading(
                per_minute=sum(ends for _, ends in self._ends),
                mean_run_seconds=_rounded(self._mean) if self._attempts else None,
            )
        return self._reading

    def _drop_old_ends(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now - _MINUTE:
            self._ends.popleft()


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
