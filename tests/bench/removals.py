"""Counts which removed pods were busy, and what happened to their runs; pure functions.

All times are seconds since the epoch. A pod is *removed* when the API server is asked to
delete it; what happens to it afterwards is its grace period's business. It was *busy* when a run in
it had begun before that moment and had not ended by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a Task's handler; ended is None if nobody recorded its end."""

    task: str
    pod: str
    began: float
    ended: float | None

    def under_way(self, at: float) -> bool:
        """Whether it ran at this moment."""
        return self.began < at and (self.ended is None or self.ended > at)


@dataclass(frozen=True, slots=True)
class Removal:
    """A pod's removal, when it was seen."""

    pod: str
    at: float


def busy_pods(removals: Iterable[Removal], runs: Iterable[Run]) -> frozenset[str]:
    """Return the pods that were removed while a run was under way in them."""
    in_pod: dict[str, list[Run]] = {}
    for run in runs:
        in_pod.setdefault(run.pod, []).append(run)
    return frozenset(
        removal.pod
        for removal in removals
        if any(run.under_way(removal.at) for run in in_pod.get(removal.pod, ()))
    )


def killed(runs: Iterable[Run]) -> frozenset[str]:
    """Return the Tasks of which a run began and never ended; ask when all Tasks have ended."""
    return frozenset(run.task for run in runs if run.ended is None)


def repeated(runs: Iterable[Run]) -> frozenset[str]:
    """Return the Tasks whose handler was run more than once."""
    counted = Counter(run.task for run in runs)
    return frozenset(task for task, times in counted.items() if times > 1)


def repeated_in_status(tasks: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the Tasks whose status has more than one attempt, or a recalled one."""
    return frozenset(
        task["metadata"]["name"]
        for task in tasks
        if task["status"].get("attempts", 0) > 1 or task["status"].get("epoch", 0) > 0
    )


def runs_in_status(tasks: Iterable[Mapping[str, Any]]) -> tuple[Run, ...]:
    """Return the attempts in the statuses of Tasks, without those that have no start time."""
    return tuple(
        Run(
            task=task["metadata"]["name"],
            pod=attempt["worker"],
            began=_seconds(attempt["startTime"]),
            ended=_seconds(attempt["finishTime"]) if attempt.get("finishTime") else None,
        )
        for task in tasks
        for attempt in task["status"].get("history", ())
        if attempt.get("startTime") and attempt.get("worker")
    )


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
