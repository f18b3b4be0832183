"""Converts TaskSchedules, and the Tasks they create, between JSON and the values of the model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from taskqueue.api.common import (
    API_VERSION,
    GROUP,
    MESSAGE_MAX_LENGTH,
    SCHEDULED_TIME,
    TASK_KIND,
    TASKSCHEDULE_KIND,
    VERSION,
)
from taskqueue.api.taskschedule import TaskScheduleResource
from taskqueue.api.taskschedule_status import TaskScheduleResourceStatus
from taskqueue.exact_json import decode_own
from taskqueue.model.schedule import (
    Backfill,
    BackfillState,
    ConcurrencyPolicy,
    MissedPolicy,
    Schedule,
    ScheduleCondition,
    ScheduledRun,
    ScheduleState,
    SkippedRun,
)
from taskqueue.model.task import Phase
from taskqueue.timestamps import from_rfc3339, to_rfc3339

SCHEDULES_PATH = f"/apis/{GROUP}/{VERSION}/taskschedules"

#: Label of the Tasks of a TaskSchedule, with its name.
SCHEDULE_LABEL = f"{GROUP}/schedule"
#: Annotations of a TaskSchedule: paused by hand, with the reason; resumed by hand, with the time.
PAUSED, RESUMED_AT = f"{GROUP}/paused", f"{GROUP}/resumed-at"

_RUN_SKIPPED = "RunSkipped"


def schedule_path(namespace: str, name: str) -> str:
    """Return the path of a TaskSchedule object."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/taskschedules/{name}"


def tasks_path(namespace: str) -> str:
    """Return the path to create Tasks at."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks"


def read_schedule(raw: Mapping[str, Any]) -> Schedule:
    """Convert a TaskSchedule object, without its template.

    Raises:
        pydantic.ValidationError: the object does not follow the schema of this operator's version.
    """
    resource = TaskScheduleResource.model_validate({**raw, "status": {}})
    spec, metadata = resource.spec, resource.metadata
    annotations = metadata.annotations
    resumed = annotations.get(RESUMED_AT, "")
    return Schedule(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        generation=metadata.generation,
        created=metadata.creation_timestamp.timestamp() if metadata.creation_timestamp else 0.0,
        schedules=spec.schedules,
        time_zone=spec.time_zone,
        concurrency_policy=ConcurrencyPolicy(spec.concurrency_policy),
        starting_deadline_seconds=spec.starting_deadline_seconds,
        missed_policy=MissedPolicy(spec.missed_runs.policy),
        missed_limit=spec.missed_runs.limit,
        jitter=jitter_of(metadata.uid, spec.jitter_seconds),
        excluded=tuple(
            (_first_minute(one.start_time), _first_minute(one.end_time)) for one in spec.exclude
        ),
        start=None if spec.start_time is None else _first_minute(spec.start_time),
        end=None if spec.end_time is None else _first_minute(spec.end_time),
        suspend=spec.suspend,
        pause_after_failures=spec.pause_after_failures,
        successful_history_limit=spec.successful_history_limit,
        failed_history_limit=spec.failed_history_limit,
        backfills=tuple(
            Backfill(
                name=one.name,
                start=_first_minute(one.start_time),
                end=_first_minute(one.end_time),
                one_at_a_time=one.concurrency_policy == "BufferAll",
                max_per_minute=one.max_per_minute,
            )
            for one in spec.backfills
        ),
        pause_reason=(annotations[PAUSED] or "no reason given") if PAUSED in annotations else "",
        resumed=_time_or_none(resumed),
    )


def jitter_of(uid: str, longest: int) -> int:
    """Return by how many seconds the runs of this TaskSchedule are later, 0 to ``longest``."""
    digest = hashlib.sha256(uid.encode()).digest()
    return int.from_bytes(digest[:8]) % (longest + 1)


def template_of(raw: Mapping[str, Any]) -> bytes:
    """Return the template of a TaskSchedule object as JSON."""
    return orjson.dumps(raw["spec"]["taskTemplate"])


def task_of(schedule: Schedule, template: bytes, minute: int) -> dict[str, Any]:
    """Return the Task object of a run."""
    made = decode_own(template)
    metadata = made.get("metadata") or {}
    return {
        "apiVersion": API_VERSION,
        "kind": TASK_KIND,
        "metadata": {
            "name": schedule.run_name(minute),
            "namespace": schedule.namespace,
            "labels": {**(metadata.get("labels") or {}), SCHEDULE_LABEL: schedule.name},
            "annotations": {
                **(metadata.get("annotations") or {}),
                SCHEDULED_TIME: _time_of(minute),
            },
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": TASKSCHEDULE_KIND,
                    "name": schedule.name,
                    "uid": schedule.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": made["spec"],
    }


def owner_of(raw: Mapping[str, Any]) -> str:
    """Return the uid of the TaskSchedule that an object belongs to; "": it belongs to none."""
    for owner in raw["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == TASKSCHEDULE_KIND:
            return str(owner.get("uid", ""))
    return ""


def read_run(raw: Mapping[str, Any]) -> ScheduledRun | None:
    """Convert as much of a Task as matters to its schedule; None: it has no time.

    Raises:
        ValueError: a value in it is not what it must be.
    """
    metadata, status = raw["metadata"], raw.get("status") or {}
    scheduled = _time_or_none((metadata.get("annotations") or {}).get(SCHEDULED_TIME, ""))
    if scheduled is None:
        return None
    phase, completed = Phase(status.get("phase", Phase.PENDING)), status.get("completionTime")
    return ScheduledRun(
        name=metadata["name"],
        uid=metadata["uid"],
        minute=int(scheduled // 60),
        phase=phase,
        finished=from_rfc3339(completed) if phase.terminal and completed else None,
        cancelling=bool((raw.get("spec") or {}).get("cancel")),
    )


# The status.


def read_state(raw: Mapping[str, Any]) -> ScheduleState:
    """Return what the status of a TaskSchedule object says.

    Raises:
        pydantic.ValidationError: the status does not follow the schema.
    """
    status = _read_status(raw)
    conditions = {one.type: one for one in status.conditions}
    paused = conditions.get("Paused")
    auto_paused = None
    if paused is not None and paused.status == "True" and paused.reason == "TooManyFailures":
        auto_paused = paused.last_transition_time.timestamp()
    skipped = conditions.get(_RUN_SKIPPED)
    return ScheduleState(
        decided=_minute(status.decided_time),
        last=_minute(status.last_schedule_time),
        lateness=status.lateness_seconds,
        last_success=_seconds(status.last_successful_time),
        missed=status.missed,
        buffered=tuple(int(one.timestamp() // 60) for one in status.buffered),
        paused=status.paused,
        failures=status.consecutive_failures,
        last_finish=_seconds(status.last_finish_time),
        auto_paused=auto_paused,
        skipped=SkippedRun(
            0, skipped.reason, skipped.message, skipped.last_transition_time.timestamp()
        )
        if skipped is not None and skipped.status == "True"
        else None,
        backfills=tuple(
            BackfillState(
                name=one.name,
                decided=int(one.decided_time.timestamp() // 60),
                until=int(one.until_time.timestamp() // 60),
                created=one.created,
                completed=_seconds(one.completion_time),
            )
            for one in status.backfills
        ),
    )


def read_transitions(raw: Mapping[str, Any]) -> dict[str, tuple[bool, float]]:
    """Return by type whether each condition holds, and since when."""
    return {
        one.type: (one.status == "True", one.last_transition_time.timestamp())
        for one in _read_status(raw).conditions
    }


def status_body(
    schedule: Schedule,
    state: ScheduleState,
    *,
    description: str,
    next_minutes: Sequence[int],
    active: int,
    conditions: Sequence[ScheduleCondition],
    transitions: Mapping[str, tuple[bool, float]],
) -> dict[str, Any]:
    """Return the status of a TaskSchedule.

    Args:
        schedule: the object.
        state: what is true of it.
        description: in words.
        next_minutes: its next times.
        active: runs that have not ended.
        conditions: as they are now.
        transitions: by type, since when each holds, or does not.
    """
    times = {
        "decidedTime": state.decided,
        "lastScheduleTime": state.last,
    }
    exact = {"lastSuccessfulTime": state.last_success, "lastFinishTime": state.last_finish}
    body: dict[str, Any] = {
        "observedGeneration": schedule.generation,
        "description": description[:MESSAGE_MAX_LENGTH],
        "nextTimes": [_time_of(minute) for minute in next_minutes],
        "active": active,
        "missed": state.missed,
        "paused": state.paused,
        "consecutiveFailures": state.failures,
        "conditions": [
            {
                "type": one.type,
                "status": "True" if one.holds else "False",
                "reason": one.reason,
                "message": one.message[:MESSAGE_MAX_LENGTH],
                "lastTransitionTime": to_rfc3339(transitions[one.type][1]),
                "observedGeneration": schedule.generation,
            }
            for one in conditions
        ],
    }
    if state.buffered:
        body["buffered"] = [_time_of(minute) for minute in state.buffered]
    if state.backfills:
        body["backfills"] = [_backfill_body(one) for one in state.backfills]
    body |= {name: _time_of(minute) for name, minute in times.items() if minute is not None}
    body |= {name: to_rfc3339(at) for name, at in exact.items() if at is not None}
    if state.lateness is not None:
        body["latenessSeconds"] = round(state.lateness, 3)
    return body


def status_patch(schedule: Schedule, body: Mapping[str, Any]) -> bytes:
    """Return the JSON patch that replaces the status of this very TaskSchedule."""
    return orjson.dumps(
        [
            {"op": "test", "path": "/metadata/uid", "value": schedule.uid},
            {"op": "add", "path": "/status", "value": body},
        ]
    )


def cancel_patch(run: ScheduledRun) -> bytes:
    """Return the JSON patch that cancels this very Task."""
    return orjson.dumps(
        [
            {"op": "test", "path": "/metadata/uid", "value": run.uid},
            {"op": "add", "path": "/spec/cancel", "value": True},
        ]
    )


def _backfill_body(state: BackfillState) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": state.name,
        "created": state.created,
        "decidedTime": _time_of(state.decided),
        "untilTime": _time_of(state.until),
    }
    if state.completed is not None:
        body["completionTime"] = to_rfc3339(state.completed)
    return body


def _read_status(raw: Mapping[str, Any]) -> TaskScheduleResourceStatus:
    return TaskScheduleResourceStatus.model_validate(raw.get("status") or {})


def _first_minute(time: datetime) -> int:
    """Return the first whole minute that is not before a time."""
    return math.ceil(time.timestamp() / 60)


def _time_of(minute: int) -> str:
    return to_rfc3339(minute * 60, "seconds")


def _time_or_none(text: str) -> float | None:
    try:
        return from_rfc3339(text)
    except ValueError:
        return None


def _minute(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp() // 60)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
