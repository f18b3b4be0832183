"""Builds a Task object from the arguments of ``submit``, and compares it with an existing one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypedDict

from pydantic import BaseModel, ValidationError

from taskqueue.api.common import API_VERSION, TASK_KIND
from taskqueue.api.task import TaskResourceSpec
from taskqueue.jsonable import plain


class BackoffOptions(TypedDict, total=False):
    """``spec.retry.backoff`` of a Task."""

    initial_seconds: float
    factor: float
    max_seconds: float
    jitter: float


class RetryOptions(TypedDict, total=False):
    """``spec.retry`` of a Task."""

    max_attempts: int
    backoff: BackoffOptions
    non_retryable: Sequence[str]


class ConfigMapKey(TypedDict):
    """A key of a ConfigMap."""

    name: str
    key: str


class PayloadFrom(TypedDict):
    """One of ``spec.payloadFrom`` of a Task."""

    config_map_key_ref: ConfigMapKey


class Dependency(TypedDict, total=False):
    """One of ``spec.dependencies`` of a Task."""

    name: Required[str]
    when: Literal["Succeeded", "Failed", "Finished"]


class TaskOptions(TypedDict, total=False):
    """The fields of a Task's spec, as docs/reference/api.md has them, in snake_case.

    A field that is omitted or None comes from the TaskQueue, or is the API's default.
    """

    payload_from: Sequence[PayloadFrom] | None
    priority: int | None
    concurrency_key: str | None
    depends_on: Sequence[str] | None
    dependencies: Sequence[Dependency] | None
    start_after: datetime | None
    retry: RetryOptions | None
    attempt_timeout_seconds: int | None
    max_deliveries: int | None
    active_deadline_seconds: int | None
    ttl_seconds_after_finished: int | None
    suspend: bool | None
    notification_names: Sequence[str] | None


#: Fields that control a Task and do not identify it: others may set them before a second submit.
_CONTROL_FIELDS = ("cancel", "suspend")


def task_spec(
    queue: str, handler: str, payload: Any, options: Mapping[str, Any]
) -> TaskResourceSpec:
    """Validate the arguments and return the spec.

    Raises:
        TypeError: an unknown argument, or a payload that is not a JSON object.
        ValueError: an invalid value; the text names the field.
    """
    unknown = sorted(set(options) - set(TaskOptions.__annotations__))
    if unknown:
        raise TypeError(
            f"submit() has no argument {', '.join(unknown)}: the fields are those of a Task's spec "
            f"in snake_case: {', '.join(TaskOptions.__annotations__)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    start_after = given.get("start_after")
    if isinstance(start_after, datetime) and start_after.tzinfo is None:
        raise ValueError(
            f"start_after={start_after.isoformat()} has no time zone: add one, such as datetime.UTC"
        )
    fields: dict[str, Any] = {"queue": queue, "handler": handler, **given}
    if payload is not None:
        fields["payload"] = payload_object(payload)
    try:
        return TaskResourceSpec.model_validate(fields, extra="forbid")
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False)
        )
        raise ValueError(f"submit() cannot create this Task: {found}") from error


def payload_object(payload: Any) -> dict[str, Any]:
    """Return a dict, a pydantic model or a dataclass as a JSON object.

    Raises:
        TypeError: it is not an object, or has a value that is not JSON; the text names its place.
    """
    found = plain(payload, "payload")
    if not isinstance(found, dict):
        raise TypeError(
            f"a payload is a JSON object, not {type(payload).__name__}: give a dict, a pydantic "
            "model or a dataclass"
        )
    return found


def manifest(
    spec: TaskResourceSpec,
    name: str,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the Task object to create."""
    metadata: dict[str, Any] = {"name": name}
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": API_VERSION,
        "kind": TASK_KIND,
        "metadata": metadata,
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_unset=True),
    }


def differences(wanted: TaskResourceSpec, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields in which an existing Task's spec differs; none: it is the same Task.

    The API server has set defaults, and may write numbers in another form (1.0 as 1).
    """
    there = TaskResourceSpec.model_validate(found)
    return tuple(
        name
        for name in TaskResourceSpec.model_fields
        if name not in _CONTROL_FIELDS
        and not _same(getattr(wanted, name), getattr(there, name), name)
    )


def _same(one: Any, other: Any, name: str = "") -> bool:
    if name in ("depends_on", "notification_names") and one is not None and other is not None:
        return set(one) == set(other)
    if name == "dependencies":
        return {(each.name, each.when) for each in one} == {
            (each.name, each.when) for each in other
        }
    if isinstance(one, BaseModel) and isinstance(other, BaseModel):
        return _same(one.model_dump(), other.model_dump())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    # True is 1 for Python, not for JSON.
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)
