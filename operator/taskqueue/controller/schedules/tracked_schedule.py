"""A schedule that is served: the object, its times, what is true of it and what is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.controller.schedules.calendar import Calendar
from taskqueue.controller.schedules.report import Problem
from taskqueue.model.schedule import Schedule, ScheduledRun, ScheduleState

#: Pauses before a run that could not be created is tried again, in seconds.
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 30.0


def _new_backoff() -> Backoff:
    return Backoff(first_seconds=_FIRST_RETRY, longest_seconds=_LONGEST_RETRY)


@dataclass(slots=True, eq=False)
class TrackedSchedule:
    """A schedule as it is served.

    Attributes:
        schedule: the object.
        calendar: its times; None: it is invalid.
        invalid: why it is.
        template: as JSON; None: it is large, and read when a run is created.
        state: what is true of it.
        written: what is certainly in the API server.
        transitions: of each condition, whether it holds and since when.
        failing: why the run that is due cannot be created.
        risky: the last request for it has failed: it is served among its like.
        description: in words.
        body: of the last status that was put on its way.
        written_body: of the last status that is certainly in the API server.
        busy: it is being served.
        again: something has changed meanwhile.
        wake: when to look at it again, in seconds since the epoch.
        paced_until: a backfill creates nothing before.
    """

    schedule: Schedule
    state: ScheduleState
    written: ScheduleState
    transitions: dict[str, tuple[bool, float]]
    calendar: Calendar | None = None
    invalid: Problem | None = None
    template: bytes | None = None
    failing: Problem | None = None
    risky: bool = False
    description: str = ""
    body: dict[str, Any] | None = None
    written_body: dict[str, Any] | None = None
    busy: bool = False
    again: bool = False
    wake: float | None = None
    paced_until: float = 0.0
    backoff: Backoff = field(default_factory=_new_backoff)

    def is_recorded(self, run: ScheduledRun) -> bool:
        """Return whether a later leader would know of a run, and of its end, without its Task."""
        counted = self.written.last_finish or 0.0
        return run.finished is not None and run.finished <= counted and self.written == self.state
