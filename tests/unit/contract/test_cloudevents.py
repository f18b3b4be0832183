"""The bytes of each event on the wire: clients in other languages rely on them."""

from __future__ import annotations

import re

import pytest

from taskqueue.contract import heartbeat, outcome
from taskqueue.contract.completion import CompletionEvent
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind
from taskqueue.model.worker import WorkerState


def attempt_event(kind: EventKind, **more: object) -> AttemptEvent:
    fields: dict[str, object] = {
        "kind": kind,
        "namespace": "shop",
        "queue": "thumbnails",
        "task": "photo-1",
        "uid": "0c1d",
        "token": "1.5f",
        "attempt": 2,
        "epoch": 1,
        "worker": "thumbnails-7f-x2",
        **more,
    }
    return AttemptEvent(**fields)  # type: ignore[arg-type]


HEAD = (
    '{"specversion":"1.0","id":"ID","type":"dev.taskqueue.%s.v1",'
    '"source":"/workers/thumbnails-7f-x2",'
)
TASK = (
    '"subject":"shop/photo-1","taskqueue":"thumbnails","datacontenttype":"application/json",'
    '"data":{"uid":"0c1d","token":"1.5f","attempt":2,"epoch":1,"worker":"thumbnails-7f-x2"'
)
ERROR = EventError(type="ValueError", message="no such photo", retryable=False)


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (attempt_event(EventKind.STARTED), HEAD % "task.started" + TASK + "}}"),
        (
            attempt_event(EventKind.SUCCEEDED, seconds=0.25, result={"width": 64}),
            HEAD % "task.succeeded" + TASK + ',"seconds":0.25,"result":{"width":64}}}',
        ),
        (
            attempt_event(EventKind.FAILED, seconds=1.5, error=ERROR, retry_after_seconds=30.0),
            HEAD % "task.failed"
            + TASK
            + ',"seconds":1.5,"error":{"type":"ValueError","message":"no such photo",'
            '"retryable":false,"application":true},"retryAfterSeconds":30.0}}',
        ),
        (attempt_event(EventKind.CANCELLED), HEAD % "task.cancelled" + TASK + "}}"),
        (attempt_event(EventKind.RELEASED), HEAD % "task.released" + TASK + "}}"),
        (
            attempt_event(
                EventKind.SUCCEEDED,
                task="thumbnails",
                uid="",
                token="",
                attempt=1,
                epoch=0,
                seconds=2.0,
                result={},
                correlation_id="order-9",
                exchange="taskqueue.direct",
                id="message-1",
            ),
            (HEAD % "task.succeeded").replace("ID", "message-1")
            + '"subject":"shop/thumbnails","taskqueue":"thumbnails",'
            '"datacontenttype":"application/json","data":{"uid":"","token":"","attempt":1,'
            '"epoch":0,"worker":"thumbnails-7f-x2","correlationId":"order-9","exchange":"taskqueue.direct","seconds":2.0,'
            '"result":{}}}',
        ),
    ],
    ids=["started", "succeeded", "failed", "cancelled", "released", "direct"],
)
def test_the_bytes_of_an_attempt_event(event: AttemptEvent, wire: str) -> None:
    assert without_id(outcome.encode(event)) == wire


@pytest.mark.parametrize(
    ("busy", "end"), [(None, "}}"), (2, ',"busy":2}}')], ids=["without-busy", "with-busy"]
)
def test_the_bytes_of_a_heartbeat(busy: int | None, end: str) -> None:
    sent = Heartbeat(
        namespace="shop",
        queue="thumbnails",
        pod="thumbnails-7f-x2",
        node="node-1",
        cpus=2.0,
        slots=4,
        handlers=("make", "scale"),
        running=(RunningAttempt("0c1d", "1.5f"), RunningAttempt("0c1e", "1.60", 40, "page 2")),
        state=WorkerState.READY,
        busy=busy,
    )
    assert without_id(heartbeat.encode(sent)) == (
        HEAD % "worker.heartbeat" + '"subject":"shop/thumbnails","taskqueue":"thumbnails",'
        '"datacontenttype":"application/json","data":{"pod":"thumbnails-7f-x2","node":"node-1",'
        '"cpus":2.0,"slots":4,"handlers":["make","scale"],"running":[{"uid":"0c1d","token":"1.5f"},'
        '{"uid":"0c1e","token":"1.60","progress":{"percent":40,"message":"page 2"}}],'
        '"state":"ready"' + end
    )


def test_the_bytes_of_a_completion_event() -> None:
    sent = CompletionEvent(
        id="0c1d.2",
        kind=EventKind.FAILED,
        namespace="shop",
        queue="thumbnails",
        subject="shop/photo-1",
        time="2026-01-02T03:04:05.678Z",
        correlation_id="0c1d",
        data={"uid": "0c1d", "phase": "Failed"},
    )
    assert sent.encode().decode() == (
        '{"specversion":"1.0","id":"0c1d.2","type":"dev.taskqueue.task.failed.v1",'
        '"source":"/namespaces/shop/taskqueues/thumbnails","subject":"shop/photo-1",'
        '"time":"2026-01-02T03:04:05.678Z","taskqueue":"thumbnails",'
        '"datacontenttype":"application/json","data":{"uid":"0c1d","phase":"Failed"}}'
    )


def without_id(body: bytes) -> str:
    """Return the event with its generated id replaced: a random word and a number."""
    return re.sub('"id":"[0-9a-f]{32}-[0-9]+"', '"id":"ID"', body.decode(), count=1)
