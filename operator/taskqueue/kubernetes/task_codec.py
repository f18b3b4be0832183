"""Converts Tasks between the API server's JSON and the values of `taskqueue.model`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from sys import intern
from typing import Any

import orjson
from pydantic import ValidationError

from taskqueue.api.common import GROUP, SCHEDULED_TIME, VERSION
from taskqueue.api.task import TaskResourceSpec, TaskRetry
from taskqueue.api.task_status import NEVER_DECREASES, ResultRef, TaskResourceStatus
from taskqueue.exact_json import check_levels
from taskqueue.jsonable import NotJsonError
from taskqueue.limits import JSON_DEPTH, PAYLOAD_BYTES, STATUS_MESSAGE_LENGTH
from taskqueue.model import task as domain
from taskqueue.model.result import ResultReference
from taskqueue.model.task import StatusDetail
from taskqueue.timestamps import from_rfc3339, in_utc, to_rfc3339

TASKS_PATH = f"/apis/{GROUP}/{VERSION}/tasks"

#: Field selector of unfinished Tasks.
UNFINISHED = ",".join(f"status.phase!={phase.value}" for phase in domain.Phase if phase.terminal)
#: Field selector of finished Tasks.
FINISHED = ",".join(f"status.phase!={phase.value}" for phase in domain.Phase if not phase.terminal)


def task_path(namespace: str, name: str) -> str:
    """Return the path of a Task object."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks/{name}"


def status_path(task: domain.Task) -> str:
    """Return the path of a Task's status subresource."""
    return f"{task_path(task.namespace, task.name)}/status"


def read_task(raw: Mapping[str, Any]) -> domain.Task:
    """Convert a Task object, without its payload.

    Raises:
        pydantic.ValidationError: the object does not follow the schema of this operator's version.
    """
    metadata = raw["metadata"]
    spec = TaskResourceSpec.model_validate(raw["spec"])
    return domain.Task(
        namespace=intern(metadata["namespace"]),
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        created=from_rfc3339(metadata["creationTimestamp"]),
        spec=domain.TaskSpec(
            # There may be 100,000 Tasks with the same: each would have a copy.
            queue=intern(spec.queue),
            handler=intern(spec.handler),
            payload_from=tuple(
                domain.PayloadSource(
                    intern(one.config_map_key_ref.name), intern(one.config_map_key_ref.key)
                )
                for one in spec.payload_from
            ),
            priority=spec.priority,
            concurrency_key=spec.concurrency_key,
            depends_on=_shared((*spec.depends_on, *(one.name for one in spec.dependencies))),
            whens=tuple((one.name, domain.DependencyWhen(one.when)) for one in spec.dependencies),
            start_after=spec.start_after.timestamp() if spec.start_after else None,
            suspend=spec.suspend,
            cancel=spec.cancel,
            overrides=read_overrides(spec),
            notification_names=spec.notification_names and _shared(spec.notification_names),
        ),
        status=_read_status(raw.get("status")),
        deleting="deletionTimestamp" in metadata,
        scheduled_time=in_utc((metadata.get("annotations") or {}).get(SCHEDULED_TIME, "")),
        labels=domain.flat_labels(metadata.get("labels")),
    )


def read_payload(raw: Mapping[str, Any]) -> bytes:
    """Return the payload of a Task object, a JSON object in UTF-8 of any size.

    Raises:
        NotJsonError: it is nested too deep.
    """
    try:
        encoded = orjson.dumps(raw["spec"].get("payload", {}))
    except TypeError as error:  # it goes less deep than what reads
        problem = f"nested deeper than {JSON_DEPTH} levels: flatten it"
        raise NotJsonError(problem, at="spec.payload") from error
    # A shorter one has not as many brackets; a longer one is refused for that.
    if 2 * JSON_DEPTH < len(encoded) <= PAYLOAD_BYTES:
        check_levels(encoded, "spec.payload")
    # A copy: orjson cuts its own from a larger piece of memory, whose rest hardly anything fits in.
    return bytes(memoryview(encoded))


def problem_of(error: Exception) -> str:
    """Return why `read_task` or `read_payload` has failed, and what to do."""
    if isinstance(error, ValidationError):
        part = "status" if error.title == TaskResourceStatus.__name__ else "spec"
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, (part, *first["loc"])))
        return f"{field}: {first['msg']}: correct it"
    if isinstance(error, NotJsonError):
        return str(error)
    return f"{error!r}: correct it"


def read_outline(raw: Mapping[str, Any]) -> domain.Task:
    """Convert as much of a Task object as it takes to end it.

    Args:
        raw: metadata, and what there is of spec and status.

    Raises:
        ValueError: a value in it is not what it must be.
        KeyError: as before.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    completed = status.get("completionTime")
    return domain.Task(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        created=from_rfc3339(metadata["creationTimestamp"]),
        spec=domain.TaskSpec(
            queue=spec.get("queue", ""),
            handler=spec.get("handler", ""),
            overrides=domain.PolicyOverrides(ttl_seconds=spec.get("ttlSecondsAfterFinished")),
        ),
        status=domain.TaskState(
            phase=domain.Phase(status.get("phase", domain.Phase.PENDING)),
            reason=status.get("reason", ""),
            attempts=status.get("attempts", 0),
            completion_time=from_rfc3339(completed) if completed else None,
        ),
        is_outline=True,
        deleting="deletionTimestamp" in metadata,
    )


#: What is written of the status of a Task that cannot be read; the rest of it stays as it is.
_END_FIELDS = frozenset(
    {"observedGeneration", "phase", "reason", "message", "attempts", "conditions"}
    | {"completionTime"}
)


def status_patch(
    task: domain.Task,
    status: domain.TaskState,
    *,
    now: float,
    detail: StatusDetail = StatusDetail.FULL,
    why: str = "",
) -> bytes:
    """Return the JSON patch that replaces the Task's status with ``status``.

    Of an outline it replaces what an end changes.

    The API server refuses it (422) if the object has another uid: then it is another Task of the
    same name. A merge patch could not test the uid, and would drop a null within the result.

    Args:
        task: the Task.
        status: what is true of it.
        now: in seconds since the epoch.
        detail: how much of that is written.
        why: why not all of it.
    """
    if detail is not StatusDetail.FULL:
        status = shortened(status, why)
    body = _bare(task, status) if detail is StatusDetail.BARE else _body(task, status, now=now)
    changes: dict[str, Any] = {"/status": body}
    if task.is_outline:
        body = {"reason": "", "message": ""} | body  # what stands there now would stay
        changes = {f"/status/{name}": body[name] for name in body.keys() & _END_FIELDS}
    return orjson.dumps(
        [
            {"op": "test", "path": "/metadata/uid", "value": task.uid},
            *({"op": "add", "path": path, "value": value} for path, value in changes.items()),
        ]
    )


def _body(task: domain.Task, status: domain.TaskState, *, now: float) -> dict[str, Any]:
    body: dict[str, Any] = {
        "observedGeneration": task.generation,
        "phase": status.phase.value,
        "attempts": status.attempts,
        "epoch": status.epoch,
        "conditions": _conditions(task, status, now=now),
    }
    # What is empty is left out: every byte is decoded, checked and stored for each Task.
    if status.reason:
        body["reason"] = status.reason
    if status.message:
        body["message"] = status.message
    if status.history:
        body["history"] = [_attempt(entry) for entry in status.history]
    if status.worker:
        body["worker"] = status.worker
    times = {
        "startTime": status.start_time,
        "nextAttemptTime": status.next_attempt_time,
        "completionTime": status.completion_time,
    }
    body |= {name: to_rfc3339(at) for name, at in times.items() if at is not None}
    if status.result is not None:
        body["result"] = status.result
    if status.result_ref is not None:
        body["resultRef"] = status.result_ref.fields()
    if status.progress is not None:
        body["progress"] = _progress(status.progress)
    if status.concurrency_key:
        body["concurrencyKey"] = status.concurrency_key
    if status.time_limit and status.phase is domain.Phase.RUNNING:
        body["attemptTimeoutSeconds"] = status.time_limit
    if status.snoozes:
        body["snoozes"] = status.snoozes
    if status.checkpoint is not None:
        body["checkpoint"] = orjson.Fragment(status.checkpoint)
    if status.payload_digest:
        body["payloadDigest"] = status.payload_digest
    return body


def _read_result_ref(found: ResultRef | None) -> ResultReference | None:
    if found is None:
        return None
    expires = found.expiration_time
    return ResultReference(
        key=found.key,
        size_bytes=found.size_bytes,
        content_type=found.content_type,
        sha256=found.sha256,
        expiration_time=None if expires is None else expires.timestamp(),
    )


def shortened(status: domain.TaskState, why: str) -> domain.TaskState:
    """Return what is recorded of a status that is refused in full; ``why``: what was said to it."""
    return replace(
        status,
        result=None,
        checkpoint=None,
        progress=None,
        # The last attempt stays: the next one's number follows from it.
        history=tuple(
            replace(one, worker="", message="", output="") for one in status.history[-1:]
        ),
        worker="",
        message=f"recorded in short, because the API server refused the full status: {why}"[
            :STATUS_MESSAGE_LENGTH
        ],
    )


def _bare(task: domain.Task, status: domain.TaskState) -> dict[str, Any]:
    """Return the least of a status: what another leader must know to go on, and how it ended."""
    body: dict[str, Any] = {
        "observedGeneration": task.generation,
        "phase": status.phase.value,
        "attempts": status.attempts,
        "epoch": status.epoch,
    }
    if status.reason:
        body["reason"] = status.reason
    if status.completion_time is not None:
        return body | {"completionTime": to_rfc3339(status.completion_time)}
    if status.next_attempt_time is not None:
        body["nextAttemptTime"] = to_rfc3339(status.next_attempt_time)
    if status.history:
        last = status.history[-1]
        body["history"] = [{"attempt": last.attempt, "outcome": last.outcome}]
    if status.concurrency_key:
        body["concurrencyKey"] = status.concurrency_key
    if status.time_limit and status.phase is domain.Phase.RUNNING:
        body["attemptTimeoutSeconds"] = status.time_limit
    if status.snoozes:
        body["snoozes"] = status.snoozes
    if status.payload_digest:
        body["payloadDigest"] = status.payload_digest
    return body


def is_behind(refusal: str) -> bool:
    """Return whether a status was refused because another writer has raised its numbers."""
    return any(rule in refusal for rule in NEVER_DECREASES)


def _progress(progress: domain.ProgressState) -> dict[str, Any]:
    fields: dict[str, Any] = {"message": progress.message}
    if progress.percent is not None:
        fields["percent"] = progress.percent
    return fields


def _attempt(entry: domain.AttemptRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "attempt": entry.attempt,
        "startTime": to_rfc3339(entry.start_time),
        "finishTime": to_rfc3339(entry.finish_time),
        "outcome": entry.outcome,
    }
    texts = {"worker": entry.worker, "reason": entry.reason, "message": entry.message}
    texts["output"] = entry.output
    return fields | {name: text for name, text in texts.items() if text}


#: The status of a Task for which nobody has written one. With more in it, somebody else has.
_UNWRITTEN = {"phase": "Pending", "observedGeneration": -1}
#: The one condition that stays, as False, when it no longer holds; a Job's does the same.
_SUSPENDED = "Suspended"
#: An attempt got another payload than the first.
_PAYLOAD_CHANGED = "PayloadChanged"

_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]*")

#: Conditions that are True in a phase; docs/concepts.md lists them.
_TRUE_IN: Mapping[domain.Phase, tuple[str, ...]] = {
    domain.Phase.PENDING: ("Reconciling",),
    domain.Phase.BLOCKED: ("Reconciling",),
    domain.Phase.SCHEDULED: ("Reconciling",),
    domain.Phase.RUNNING: ("Reconciling",),
    domain.Phase.RETRYING: ("Reconciling",),
    domain.Phase.SUSPENDED: (_SUSPENDED, "Reconciling"),
    domain.Phase.SUCCEEDED: ("Finished", "Complete"),
    domain.Phase.FAILED: ("Finished", "Failed", "Stalled"),
    domain.Phase.CANCELLED: ("Finished", "Failed", "Stalled"),
}


def _conditions(task: domain.Task, status: domain.TaskState, *, now: float) -> list[dict[str, Any]]:
    # A Task is Reconciling from its creation on; any other condition has become True just now.
    since = {"Reconciling": task.created}
    conditions = [
        {
            "type": kind,
            "status": "True",
            # An error type need not be a valid reason of a condition.
            "reason": status.reason if _REASON.fullmatch(status.reason) else status.phase.value,
            "message": status.message,
            "lastTransitionTime": to_rfc3339(since.get(kind, status.completion_time or now)),
        }
        for kind in _TRUE_IN[status.phase]
    ]
    if status.resumed_time is not None and status.phase is not domain.Phase.SUSPENDED:
        conditions.append(
            {
                "type": _SUSPENDED,
                "status": "False",
                "reason": "Resumed",
                "message": "spec.suspend is false again",
                "lastTransitionTime": to_rfc3339(status.resumed_time),
            }
        )
    if status.payload_changed_time is not None:
        conditions.append(
            {
                "type": _PAYLOAD_CHANGED,
                "status": "True",
                "reason": "ConfigMapChanged",
                "message": "an attempt got another payload than the first: what spec.payloadFrom "
                "names was changed in between",
                "lastTransitionTime": to_rfc3339(status.payload_changed_time),
            }
        )
    return conditions


def _time_of(status: TaskResourceStatus, kind: str, value: str) -> float | None:
    """Return since when a condition has a value; None: it does not have it."""
    found = (one for one in status.conditions if (one.type, one.status) == (kind, value))
    return next((one.last_transition_time.timestamp() for one in found), None)


def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    # Many Tasks may have the same; to intern one alone costs more than it saves.
    return tuple(map(intern, names)) if len(names) > 1 else names


def read_overrides(spec: TaskResourceSpec) -> domain.PolicyOverrides:
    """Return the retry and time settings that a spec has of its own."""
    times = (spec.attempt_timeout_seconds, spec.active_deadline_seconds)
    others = (spec.retry, spec.max_deliveries, spec.ttl_seconds_after_finished)
    if all(own is None for own in (*times, *others)):
        return domain.NO_OVERRIDES
    retry = spec.retry or TaskRetry()
    backoff = retry.backoff
    return domain.PolicyOverrides(
        max_attempts=retry.max_attempts,
        initial_seconds=backoff.initial_seconds if backoff else None,
        factor=backoff.factor if backoff else None,
        max_seconds=backoff.max_seconds if backoff else None,
        jitter=backoff.jitter if backoff else None,
        non_retryable=None if retry.non_retryable is None else frozenset(retry.non_retryable),
        attempt_timeout_seconds=spec.attempt_timeout_seconds,
        max_deliveries=spec.max_deliveries,
        active_deadline_seconds=spec.active_deadline_seconds,
        ttl_seconds=spec.ttl_seconds_after_finished,
    )


def _read_status(raw: Mapping[str, Any] | None) -> domain.TaskState:
    if not raw or raw == _UNWRITTEN:
        return domain.PENDING
    status = TaskResourceStatus.model_validate(raw)
    next_time = status.next_attempt_time
    return domain.TaskState(
        phase=domain.Phase(status.phase),
        reason=status.reason,
        message=status.message,
        attempts=status.attempts,
        epoch=status.epoch,
        history=tuple(
            domain.AttemptRecord(
                attempt=entry.attempt,
                outcome=entry.outcome,
                start_time=entry.start_time.timestamp() if entry.start_time else 0.0,
                finish_time=entry.finish_time.timestamp() if entry.finish_time else 0.0,
                worker=entry.worker,
                reason=entry.reason,
                message=entry.message,
                output=entry.output,
            )
            for entry in status.history
        ),
        start_time=status.start_time.timestamp() if status.start_time else None,
        completion_time=status.completion_time.timestamp() if status.completion_time else None,
        next_attempt_time=next_time.timestamp() if next_time else None,
        worker=status.worker,
        concurrency_key=status.concurrency_key,
        time_limit=status.attempt_timeout_seconds,
        snoozes=status.snoozes,
        checkpoint=None if status.checkpoint is None else orjson.dumps(status.checkpoint),
        payload_digest=status.payload_digest,
        payload_changed_time=_time_of(status, _PAYLOAD_CHANGED, "True"),
        # Deadlines count from there.
        resumed_time=_time_of(status, _SUSPENDED, "False"),
        result=status.result,
        result_ref=_read_result_ref(status.result_ref),
    )
