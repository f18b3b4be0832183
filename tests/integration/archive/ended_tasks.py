"""Tasks that have ended, of any content, and a filter in plain Python to compare the archive's."""

from __future__ import annotations

import string
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from taskqueue.archive.history import HistoryFilter
from taskqueue.archive.rows import ArchivedTask

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
HANDLERS, REASONS = ("resize", "mail"), ("", "RetriesExhausted", "Deleted")
PHASES = ("Succeeded", "Failed", "Cancelled")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
#: Few values, so that some match.
WORDS = st.sampled_from(["", "a", "B", "Timeout", "ÄRGER", "50 %", "_", "\\", "'", "x\0y"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)
#: Payloads that filters find something in.
SMALL_VALUES = st.sampled_from([None, True, 1, 1.0, 0, "1", "x", [1, "x"], {"b": 1}, {"b": [2]}])
SMALL_PAYLOADS = st.dictionaries(st.sampled_from(["a", "b", "0"]), SMALL_VALUES, max_size=2)
LABELS = st.dictionaries(st.sampled_from(["app", "team"]), st.sampled_from("xy"), max_size=2)
TIMES = st.integers(0, 5).map(lambda seconds: EPOCH + timedelta(seconds=seconds))


def ended_tasks(
    *, namespace: str, payloads: st.SearchStrategy[dict[str, Any] | None] = SMALL_PAYLOADS
) -> st.SearchStrategy[ArchivedTask]:
    """Return Tasks of a namespace, alike enough that each filter matches some."""
    return st.builds(
        ArchivedTask,
        uid=st.uuids(version=4).map(str),
        namespace=st.just(namespace),
        queue=st.sampled_from(["q", "r"]),
        name=WORDS,
        handler=st.sampled_from(HANDLERS),
        phase=st.sampled_from(PHASES),
        reason=st.sampled_from(REASONS),
        message=st.lists(WORDS, max_size=3).map("".join),
        labels=LABELS,
        attempts=st.integers(0, 1000),
        history=st.lists(
            st.fixed_dictionaries({"attempt": st.integers(1, 9), "message": TEXTS})
        ).map(tuple),
        worker=WORDS,
        created=st.none() | TIMES,
        started=st.none() | TIMES,
        completed=TIMES,
        result=st.none() | OBJECTS,
        result_ref=st.none() | st.just({"key": "a/b/c", "sizeBytes": 3}),
        payload=st.none() | payloads,
        submitted_by=WORDS,
        cancelled_by=WORDS,
        retry_of=WORDS,
    )


def new_task(**fields: Any) -> ArchivedTask:
    """Return a Task of which only these fields matter."""
    return ArchivedTask(
        **{
            "uid": str(uuid.uuid4()),
            "namespace": "shop",
            "queue": "q",
            "name": "t",
            "handler": "resize",
            "phase": "Succeeded",
            "reason": "",
            "message": "",
            "attempts": 1,
            "completed": EPOCH,
            **fields,
        }
    )


def wanted(tasks: Sequence[ArchivedTask], one: HistoryFilter) -> list[ArchivedTask]:
    """Return what a filter wants, the last that ended first."""
    found = [task for task in tasks if _matches(task, one)]
    return sorted(found, key=lambda task: (task.completed, task.uid), reverse=True)


def _matches(task: ArchivedTask, one: HistoryFilter) -> bool:
    return bool(
        task.namespace == one.namespace
        and one.queue in (None, task.queue)
        and one.handler in (None, task.handler)
        and (not one.phases or task.phase in one.phases)
        and one.reason in (None, task.reason)
        and one.labels.items() <= task.labels.items()
        and (one.since is None or task.completed >= one.since)
        and (one.until is None or task.completed < one.until)
        and (one.error_text is None or _lower(one.error_text) in _lower(_stored(task.message)))
        and all(_has(task.payload, path, value) for path, value in one.payload.items())
    )


_SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def _lower(text: str) -> str:
    return text.translate(_SMALL)


def _stored(text: str) -> str:
    return text.replace("\0", "\u2400")


def _has(payload: Any, path: str | tuple[str, ...], value: Any) -> bool:
    parts = path.split(".") if isinstance(path, str) else path
    if payload is None:
        return False
    for part in parts:
        if isinstance(payload, dict) and part in payload:
            payload = payload[part]
        elif isinstance(payload, list) and part.isdecimal() and int(part) < len(payload):
            payload = payload[int(part)]
        else:
            return False
    return bool(_kind(payload) == _kind(value))


def _kind(value: Any) -> Any:
    """Return a value that is equal only where JSON's is: True is not 1, and 1 is 1.0."""
    if isinstance(value, dict):
        return ("object", {key: _kind(inner) for key, inner in value.items()})
    if isinstance(value, list):
        return ("list", [_kind(inner) for inner in value])
    return (isinstance(value, bool), value)


def as_stored(task: ArchivedTask) -> dict[str, Any]:
    """Return the fields of a Task as the archive returns them: no text has a NUL."""
    fields = {name: getattr(task, name) for name in task.__slots__}
    exact = ("result", "result_ref", "history")
    return {
        name: _without_nul(value) if name not in exact else value for name, value in fields.items()
    }


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return _stored(value)
    if isinstance(value, list):
        return [_without_nul(inner) for inner in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return value
