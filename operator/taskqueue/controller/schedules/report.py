"""What is said of a schedule: its conditions, and the description of its times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taskqueue.controller.schedules.calendar import (
    Calendar,
    UnknownZoneError,
    Window,
    load_zone,
    merged,
)
from taskqueue.controller.schedules.cron import InvalidCronError, parse_cron
from taskqueue.controller.schedules.decisions import pause_reason
from taskqueue.model.schedule import Schedule, ScheduleCondition, ScheduleState
from taskqueue.timestamps import to_rfc3339


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a schedule is not served, or a run of it cannot be created."""

    reason: str
    message: str


def read_calendar(schedule: Schedule) -> Calendar | Problem:
    """Return the times of a schedule, or what is wrong with it and what to write instead."""
    try:
        zone = load_zone(schedule.time_zone)
    except UnknownZoneError as error:
        return Problem("UnknownTimeZone", f"spec.timeZone: {schedule.time_zone!r} {error}")
    crons = []
    for text in schedule.schedules:
        try:
            crons.append(parse_cron(text))
        except InvalidCronError as error:
            return Problem("InvalidSchedule", f"spec.schedules: {text!r} {error}")
    excluded = merged([Window(*one) for one in schedule.excluded])
    return Calendar(tuple(crons), zone, excluded)


def describe(schedule: Schedule, calendar: Calendar) -> str:
    """Return the schedules in words."""
    words = "; ".join(cron.describe() for cron in calendar.crons)
    return f"{words} ({schedule.time_zone})"


def conditions_of(
    schedule: Schedule,
    state: ScheduleState,
    *,
    invalid: Problem | None,
    failing: Problem | None,
    has_next: bool,
) -> list[ScheduleCondition]:
    """Return the conditions of a schedule.

    Args:
        schedule: the object.
        state: what is true of it.
        invalid: why it is not served; None: it is.
        failing: why a run that is due cannot be created; None: none is, or it can.
        has_next: whether there is another time.
    """
    if invalid is not None:
        return [
            ScheduleCondition("Ready", False, invalid.reason, invalid.message),
            ScheduleCondition("Stalled", True, invalid.reason, invalid.message),
        ]
    if failing is not None:
        ready = ScheduleCondition("Ready", False, failing.reason, failing.message)
    elif has_next or state.paused:
        ready = ScheduleCondition("Ready", True, "Scheduled", "Tasks are created as scheduled")
    else:
        ready = ScheduleCondition("Ready", True, "Ended", "there is no further time")
    return [ready, _paused(schedule, state), _skipped(state)]


def _paused(schedule: Schedule, state: ScheduleState) -> ScheduleCondition:
    reason = pause_reason(schedule, state)
    messages: Mapping[str, str] = {
        "": "runs are created",
        "Suspended": "spec.suspend is true",
        "PausedByHand": f"by the annotation taskqueue.dev/paused: {schedule.pause_reason}; remove "
        "it to go on",
        "TooManyFailures": f"{state.failures} runs in a row have failed: correct the cause, then "
        "set the annotation taskqueue.dev/resumed-at to the present time, such as "
        f"{to_rfc3339(state.auto_paused or 0.0, 'seconds')}",
    }
    return ScheduleCondition("Paused", bool(reason), reason or "Active", messages[reason])


def _skipped(state: ScheduleState) -> ScheduleCondition:
    if state.skipped is None:
        return ScheduleCondition("RunSkipped", False, "NoneSkipped", "the last run was created")
    return ScheduleCondition("RunSkipped", True, state.skipped.reason, state.skipped.message)


def changed_transitions(
    transitions: Mapping[str, tuple[bool, float]],
    conditions: Iterable[ScheduleCondition],
    *,
    at: float,
) -> dict[str, tuple[bool, float]]:
    """Return by type whether each condition holds, and since when."""
    changed: dict[str, tuple[bool, float]] = {}
    for one in conditions:
        before = transitions.get(one.type)
        changed[one.type] = before if before and before[0] == one.holds else (one.holds, at)
    return changed
