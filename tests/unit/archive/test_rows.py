"""What the archive reads of a completion event is what the Task was."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.archive.rows import read_event
from taskqueue.contract.completion import archive_record, task_completion
from taskqueue.contract.names import ContractError
from taskqueue.model.origin import TaskOrigin
from taskqueue.model.task import AttemptRecord, Phase, Task, TaskSpec, TaskState

TASK = Task(
    namespace="shop",
    name="t",
    uid="uid-t",
    generation=1,
    created=1_700_000_000.0,
    spec=TaskSpec(queue="q", handler="resize"),
)
END = TaskState(
    phase=Phase.FAILED,
    reason="RetriesExhausted",
    message="attempt 1 of 1: Boom: no",
    attempts=1,
    history=(AttemptRecord(1, "Failed", 1_700_000_001.0, 1_700_000_002.5, "pod", "Boom", "no"),),
    start_time=1_700_000_001.0,
    completion_time=1_700_000_002.5,
    worker="pod",
)
ORIGIN = TaskOrigin(
    labels={"app": "x"}, submitted_by="kubectl", cancelled_by="someone", retry_of="before"
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PAYLOADS = st.none() | st.dictionaries(TEXTS, TEXTS | st.integers(-9, 9) | st.none(), max_size=3)


def event(
    status: TaskState = END, origin: TaskOrigin = ORIGIN, payload: Any = None, task: Task = TASK
) -> bytes:
    encoded = None if payload is None else orjson.dumps(payload)
    return task_completion(task, status, archive_record(task, status, origin, encoded)).encode()


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@given(
    st.sampled_from([Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED]),
    TEXTS,
    TEXTS,
    st.dictionaries(TEXTS, TEXTS, max_size=3),
    PAYLOADS,
    st.none() | st.dictionaries(TEXTS, st.integers(-(2**63), 2**63 - 1), max_size=2),
)
def test_an_event_is_read_as_the_task_that_has_ended(
    phase: Phase,
    reason: str,
    message: str,
    labels: dict[str, str],
    payload: Any,
    result: dict[str, Any] | None,
) -> None:
    status = replace(END, phase=phase, reason=reason, message=message, result=result)
    origin = replace(ORIGIN, labels=labels)
    row = read_event(event(status, origin, payload), namespace="shop", queue="q")
    assert row is not None
    assert (row.uid, row.namespace, row.queue, row.name) == ("uid-t", "shop", "q", "t")
    assert (row.handler, row.phase, row.reason, row.message) == ("resize", phase, reason, message)
    assert (row.attempts, row.worker, row.labels) == (1, "pod", labels)
    assert (row.created, row.started, row.completed) == (
        at(TASK.created),
        at(1_700_000_001.0),
        at(1_700_000_002.5),
    )
    assert row.payload == payload
    assert row.result == result
    assert (row.submitted_by, row.cancelled_by, row.retry_of) == ("kubectl", "someone", "before")
    assert row.history == (
        {
            "attempt": 1,
            "startTime": "2023-11-14T22:13:21.000Z",
            "finishTime": "2023-11-14T22:13:22.500Z",
            "worker": "pod",
            "outcome": "Failed",
            "reason": "Boom",
            "message": "no",
        },
    )


def test_a_task_of_which_little_is_known_has_a_row() -> None:
    deleted = TaskState(phase=Phase.CANCELLED, reason="Deleted", completion_time=1.0)
    task = replace(TASK, created=0.0, spec=TaskSpec(queue="q", handler=""))
    row = read_event(event(deleted, TaskOrigin(), task=task), namespace="shop", queue="q")
    assert row is not None
    assert (row.created, row.started, row.history, row.labels) == (None, None, (), {})


def test_a_payload_above_the_limit_is_left_out() -> None:
    row = read_event(event(payload={"x": "y" * 300_000}), namespace="shop", queue="q")
    assert row is not None
    assert row.payload is None


def test_an_end_without_a_record_has_no_row() -> None:
    assert read_event(task_completion(TASK, END).encode(), namespace="shop", queue="q") is None


def test_the_end_of_another_queue_is_refused() -> None:
    for namespace, queue in (("shop", "other"), ("other", "q")):
        with pytest.raises(ContractError, match="about TaskQueue shop/q"):
            read_event(event(), namespace=namespace, queue=queue)


@given(st.data())
def test_whatever_is_changed_in_an_event_is_read_or_refused(data: st.DataObject) -> None:
    envelope = orjson.loads(event(payload={"a": 1}))
    place = data.draw(st.sampled_from([envelope, envelope["data"], envelope["data"]["record"]]))
    name = data.draw(st.sampled_from(sorted(place)))
    junk = st.none() | st.integers() | TEXTS | st.lists(TEXTS) | st.dictionaries(TEXTS, TEXTS)
    if data.draw(st.booleans()):
        del place[name]
    else:
        place[name] = data.draw(junk)
    try:
        body = orjson.dumps(envelope)
    except TypeError:  # an integer that is too large
        return
    with suppress(ContractError):
        read_event(body, namespace="shop", queue="q")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"\xff", b'{"data": NaN}'])
def test_what_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(ContractError):
        read_event(body, namespace="shop", queue="q")
