"""Computes a pool's size from its backlog: a number of workers, and the formula.

The formula is one line for people; from its numbers anyone can compute the result again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BacklogTarget:
    """Sizes the pool by the backlog of one worker, at least 1."""

    tasks_per_replica: int = 5

    def replicas_for(
        self, backlog: int, *, kind: str, slots: int, mean_run_seconds: float | None
    ) -> tuple[int, str]:
        """Return the number of workers, and its formula; slots and run time do not matter."""
        share = self.tasks_per_replica
        return math.ceil(backlog / share), f"ceil({backlog} {kind} / {share} per replica)"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainTimeTarget:
    """Sizes the pool so that the backlog is worked off within a time.

    Attributes:
        seconds: the time, more than 0.
        tasks_per_replica: backlog of one worker until a run time is measured, at least 1.
    """

    seconds: float
    tasks_per_replica: int = 5

    def replicas_for(
        self, backlog: int, *, kind: str, slots: int, mean_run_seconds: float | None
    ) -> tuple[int, str]:
        """Return the number of workers, and its formula.

        Args:
            backlog: what is to be worked off.
            kind: what the formula calls it.
            slots: attempts one worker runs at once.
            mean_run_seconds: how long attempts ran lately; None: not measured.
        """
        if mean_run_seconds is None:
            size, formula = BacklogTarget(self.tasks_per_replica).replicas_for(
                backlog, kind=kind, slots=slots, mean_run_seconds=None
            )
            return size, f"{formula}, until a run time is measured"
        mean = float(f"{mean_run_seconds:.3g}")  # the formula shows the number it is computed with
        per_worker = f"{slots} slot{'s' if slots != 1 else ''} x {self.seconds:g} s"
        formula = f"ceil({backlog} {kind} x {mean:g} s / ({per_worker}))"
        # Rounded first: 100 x 1.1 / 11 is a little more than 10.
        size = math.ceil(round(backlog * mean / (slots * self.seconds), 6))
        most = math.ceil(backlog / slots)
        if size > most:
            return most, f"{formula}, capped at a slot per task"
        if size == 0 and backlog > 0:
            return 1, f"{formula}, at least 1 for any backlog"
        return size, formula


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """What the TaskQueue asks for.

    Attributes:
        min_replicas: never fewer.
        max_replicas: never more.
        target: what the size between them is worked out from.
        up_step: the most workers that start at a time; None: any number.
        down_step: the most workers that are drained at a time; None: any number.
        stabilization_seconds: the pool shrinks to the largest size wanted within this time.
        idle_seconds_before_zero: how long the backlog must be empty before the pool is.
        fallback_replicas: the size, at least 1, once the backlog has been unknown for
            ``stabilization_seconds``; None: the last size is held on.
        paused_replicas: the size while scaling is paused, None when it is not.
        draining: nothing new is published, and the pool shrinks as what is published ends.
    """

    min_replicas: int = 0
    max_replicas: int = 10
    target: BacklogTarget | DrainTimeTarget = field(default_factory=BacklogTarget)
    up_step: int | None = None
    down_step: int | None = None
    stabilization_seconds: float = 30.0
    idle_seconds_before_zero: float = 60.0
    fallback_replicas: int | None = None
    paused_replicas: int | None = None
    draining: bool = False
