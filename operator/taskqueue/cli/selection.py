"""Which Tasks a command works on: by name, or all that match a filter."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

PHASES = (
    *("Pending", "Blocked", "Scheduled", "Suspended", "Running", "Retrying"),
    *("Succeeded", "Failed", "Cancelled"),
)
FINISHED = ("Succeeded", "Failed", "Cancelled")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Parse a duration such as 90s, 5m, 2h, 1d or 1h30m, and return seconds."""
    if not re.fullmatch(r"(\d+[smhd])+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: give one such as 90s, 2h or 1d")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on a Task, all of which must hold; empty ones hold always.

    Attributes:
        queue: the TaskQueue it is for.
        handler: the handler that runs it.
        phases: its phase is one of these.
        reason: ``status.reason``, or the reason of its last attempt.
        older_than: seconds since it was created, at least.
    """

    queue: str = ""
    handler: str = ""
    phases: tuple[str, ...] = ()
    reason: str = ""
    older_than: float = 0.0

    def matches(self, task: Mapping[str, Any], now: float) -> bool:
        """Return whether a Task object is one of these; ``now`` in seconds since the epoch."""
        spec, status = task["spec"], task.get("status") or {}
        reasons = {status.get("reason", "")} | {
            attempt.get("reason", "") for attempt in status.get("history", [])[-1:]
        }
        return (
            self.queue in ("", spec["queue"])
            and self.handler in ("", spec["handler"])
            and (not self.phases or status.get("phase", "Pending") in self.phases)
            and (not self.reason or self.reason in reasons)
            # The clock here may be behind that of the API server: no age is asked for nothing.
            and (not self.older_than or now - _created(task) >= self.older_than)
        )

    @property
    def is_empty(self) -> bool:
        """Whether it matches every Task."""
        return self == Filter()

    def field_selector(self) -> list[str]:
        """Return options for kubectl that leave out what cannot match."""
        fields = [f"spec.queue={self.queue}"] if self.queue else []
        if len(self.phases) == 1:
            fields.append(f"status.phase={self.phases[0]}")
        return [f"--field-selector={','.join(fields)}"] if fields else []


def _created(task: Mapping[str, Any]) -> float:
    return seconds_of(task["metadata"]["creationTimestamp"])


def seconds_of(text: str) -> float:
    """Return a time of the API server in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()
