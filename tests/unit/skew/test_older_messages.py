"""What workers, operator and producers of the older commit write is read as they meant it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from devcluster.paths import CHECKOUT
from examples.subscriber.subscriber import line
from taskqueue.amqp.properties import BasicProperties
from taskqueue.contract import cloudevents, command, heartbeat, outcome
from taskqueue.contract.completion import CompletionEvent, direct_completion, task_completion
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt
from taskqueue.contract.names import DIRECT_EXCHANGE, WORK_EXCHANGE
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind
from taskqueue.contract.work import (
    AttemptClaim,
    DirectMessage,
    WorkMessage,
    claimed_attempt,
    parse_work,
    published_to,
)
from taskqueue.model.command import CommandKind
from taskqueue.model.task import AttemptRecord, Phase, Task, TaskSpec, TaskState
from taskqueue.model.token import TokenKeys
from taskqueue.model.worker import WorkerState
from taskqueue.worker.attempt_events import payload_of, work_attempt
from tests.commits import OLDER, needs_older, sources
from tests.conformance import go
from tests.unit.skew import older_messages
from tests.unit.skew.conftest import OlderSide
from tests.unit.skew.older_messages import (
    COMMANDS,
    COMPLETIONS,
    DEAD_LETTERS,
    EVENTS,
    GO_EVENTS,
    GO_HEARTBEATS,
    HEARTBEATS,
    WORK,
)
from tests.unit.skew.older_side import NOW, UID, WORKER

KEYS = TokenKeys("k1", {"k1": b"a key of thirty-two bytes or more"})
TOKEN = KEYS.sign(UID, 2, 1)

TASK = WorkMessage(
    namespace="shop",
    queue="images",
    task="resize-1",
    uid=UID,
    handler="resize",
    attempt=2,
    max_attempts=3,
    epoch=1,
    token=TOKEN,
    max_deliveries=3,
    timeout_seconds=300,
    body=b'{"url":"https://example.com/a.png","width":640}',
    checkpointed=None,
)

#: What an event says besides the attempt that it is about.
SAID: dict[str, dict[str, Any]] = {
    "started": {"kind": EventKind.STARTED},
    "succeeded": {
        "kind": EventKind.SUCCEEDED,
        "seconds": 1.5,
        "result": {"width": 640, "none": None},
    },
    "succeeded without a result": {"kind": EventKind.SUCCEEDED, "seconds": 0.25},
    "failed by an exception": {
        "seconds": 2.0,
        "error": EventError(type="ConnectionRefused", message="no route"),
    },
    "failed for good": {
        "seconds": 0.5,
        "error": EventError(type="NotFound", message="no such page", retryable=False),
    },
    "wants a later retry": {
        "seconds": 0.5,
        "error": EventError(type="Retry", message="rate limit"),
        "retry_after_seconds": 30.0,
    },
    "timed out": {
        "seconds": 300.0,
        "error": EventError(
            type="Timeout", message="the attempt did not end within 300 s", reserved=True
        ),
    },
    "lost its workers": {
        "seconds": 0.0,
        "error": EventError(
            type="WorkerLost",
            message="the attempt was delivered 3 times and no outcome came: each time its worker "
            "was killed, ran out of memory or was cut off from the broker",
            reserved=True,
        ),
    },
    "of an unknown handler": {
        "seconds": 0.0,
        "error": EventError(
            type="UnknownHandler",
            message="no handler is called 'resize' here; registered: crop, echo",
            reserved=True,
        ),
    },
    "with a result that is no JSON": {
        "seconds": 0.5,
        "error": EventError(
            type="InvalidResult",
            message="handler 'resize' returned dict, not JSON (Type is not JSON serializable: "
            "object): return a dict, a pydantic model, a dataclass, a list, a string, a number, a "
            "boolean or None",
            retryable=False,
        ),
    },
    "with a result that is too large": {
        "seconds": 0.5,
        "error": EventError(
            type="ResultTooLarge",
            message="the result is 20012 bytes of JSON, the limit is 16384: store it elsewhere and "
            "return where it is",
            retryable=False,
        ),
    },
    "cancelled": {"kind": EventKind.CANCELLED, "seconds": 4.0},
    "released": {"kind": EventKind.RELEASED},
}
DIRECT = {
    "a direct message succeeded": {
        "kind": EventKind.SUCCEEDED,
        "seconds": 1.5,
        "result": {"width": 640},
    },
    "a direct message failed": {
        "seconds": 1.5,
        "error": EventError(type="NotFound", message="no such page", retryable=False),
    },
}

#: The same of the Go worker; it tells all errors of its own from an application's only by the type.
GO_SAID: dict[str, dict[str, Any]] = {
    "started": {"kind": EventKind.STARTED},
    "succeeded": {"kind": EventKind.SUCCEEDED, "seconds": 1.5, "result": {"width": 640}},
    "succeeded without a result": {"kind": EventKind.SUCCEEDED, "seconds": 1.5},
    "failed by an error": {"seconds": 1.5, "error": EventError(type="Error", message="no route")},
    "failed for good": {
        "seconds": 1.5,
        "error": EventError(type="NotFound", message="no such page", retryable=False),
    },
    "wants a later retry": {
        "seconds": 1.5,
        "error": EventError(type="Retry", message="rate limit"),
        "retry_after_seconds": 30.0,
    },
    "timed out": {
        "seconds": 1.5,
        "error": EventError(type="Timeout", message="no end after 5m0s", reserved=True),
    },
    "lost its workers": {
        "seconds": 0.0,
        "error": EventError(
            type="WorkerLost", message="delivered 3 times without an outcome", reserved=True
        ),
    },
    "of an unknown handler": {
        "seconds": 0.0,
        "error": EventError(type="UnknownHandler", message='no handler "resize"', reserved=True),
    },
    "with a result that is no JSON": {
        "seconds": 1.5,
        "error": EventError(
            type="InvalidResult",
            message="the result is not JSON: json: unsupported type: chan int",
            retryable=False,
        ),
    },
    "cancelled": {"kind": EventKind.CANCELLED, "seconds": 1.5},
    "released": {"kind": EventKind.RELEASED},
}
GO_WORKER = "go-worker-5d9c-x2x7q"


@needs_older
def test_the_literals_are_what_the_older_commit_writes(older_side: OlderSide) -> None:
    for kind, written in older_side.write().items():
        assert older_messages.ALL[kind] == written, kind


@needs_older
@pytest.mark.long
@pytest.mark.skipif(go.go() is None, reason="Go is not installed")
def test_the_literals_are_what_the_older_go_worker_writes() -> None:
    with sources(OLDER) as tree:
        module = tree / go.MODULE.relative_to(CHECKOUT)
        program = Path(__file__).with_name("older_side_test.go")
        shutil.copy(program, module / "taskqueue")
        lines = go.call("test", "-v", "-run=TestWriteMessages", "./taskqueue", module=module)
    written = next(json.loads(line) for line in lines.splitlines() if line.startswith("{"))
    assert written == {"EVENTS": GO_EVENTS, "HEARTBEATS": GO_HEARTBEATS}


def work(name: str) -> tuple[BasicProperties, bytes]:
    """Return a message for a work queue, as it comes from the wire."""
    written = BasicProperties(**WORK[name]["properties"])
    read = BasicProperties()
    read.decode(b"".join(written.encode()))
    return read, WORK[name]["body"].encode()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a Task's", {}),
        ("of a concurrency key", {"fence": 41}),
        ("traced", {"trace": True}),
    ],
)
def test_an_attempt(name: str, changes: dict[str, Any]) -> None:
    message = parse_work(*work(name), exchange=WORK_EXCHANGE)
    assert isinstance(message, WorkMessage)
    for field in WorkMessage.__slots__:
        expected = changes.get(field, getattr(TASK, field))
        if field != "trace":
            assert getattr(message, field) == expected, field
    assert bool(message.trace) == ("trace" in changes)


@pytest.mark.parametrize("redelivered", [False, True])
def test_an_attempt_of_an_operator_that_keeps_no_checkpoints(redelivered: bool) -> None:
    message = parse_work(*work("a Task's"), exchange=WORK_EXCHANGE)
    assert isinstance(message, WorkMessage)
    attempt = work_attempt(
        message, payload_of(message), redelivered=redelivered, on_checkpoint=lambda _: None
    )
    assert attempt.payload == {"url": "https://example.com/a.png", "width": 640}
    # It runs again from its beginning: nobody has anything it could go on from.
    assert attempt.checkpoint_known
    assert attempt.on_checkpoint is None


@pytest.mark.parametrize("exchange", [WORK_EXCHANGE, DIRECT_EXCHANGE])
@pytest.mark.parametrize(
    ("name", "handler"), [("direct", "resize"), ("direct, of the default handler", None)]
)
def test_a_direct_message(name: str, handler: str | None, exchange: str) -> None:
    assert parse_work(*work(name), exchange=exchange) == DirectMessage(
        handler=handler, correlation_id="order-7", payload={"width": 640}
    )


def event(name: str) -> AttemptEvent:
    return outcome.decode(orjson.dumps(EVENTS[name]["body"]))


def test_every_event_is_tried() -> None:
    assert {*SAID, *DIRECT} == set(EVENTS)


@pytest.mark.parametrize("name", SAID)
def test_an_event_about_an_attempt(name: str) -> None:
    read = event(name)
    about: dict[str, Any] = {
        "namespace": "shop",
        "queue": "images",
        "task": "resize-1",
        "worker": WORKER,
    }
    attempt: dict[str, Any] = {"uid": UID, "token": TOKEN, "attempt": 2, "epoch": 1, "id": read.id}
    assert read == AttemptEvent(**{"kind": EventKind.FAILED, **about, **attempt, **SAID[name]})
    assert read.routing_key == EVENTS[name]["key"]
    assert KEYS.verify(read.token, read.uid, read.attempt, read.epoch)


@pytest.mark.parametrize("name", DIRECT)
def test_an_event_about_a_direct_message(name: str) -> None:
    about: dict[str, Any] = {
        "namespace": "shop",
        "queue": "images",
        "task": "images",
        "worker": WORKER,
    }
    ids: dict[str, Any] = {"uid": "", "token": "", "attempt": 2, "epoch": 0, "id": "message-7"}
    read = event(name)
    assert read == AttemptEvent(
        **{"kind": EventKind.FAILED, **about, **ids, "correlation_id": "order-7", **DIRECT[name]}
    )
    assert read.is_direct
    assert read.exchange == ""  # it does not say which exchange it came by


def test_every_event_of_a_go_worker_is_tried() -> None:
    direct = {"a direct message succeeded", "a direct message failed for good"}
    assert {*GO_SAID} == {*GO_EVENTS} - direct
    for name in direct:
        read = outcome.decode(orjson.dumps(GO_EVENTS[name]["body"]))
        assert (read.correlation_id, read.id, read.is_direct) == ("order-7", "message-7", True)


@pytest.mark.parametrize("name", GO_SAID)
def test_an_event_of_a_go_worker(name: str) -> None:
    read = outcome.decode(orjson.dumps(GO_EVENTS[name]["body"]))
    about: dict[str, Any] = {
        "namespace": "shop",
        "queue": "images",
        "task": "resize-1",
        "worker": GO_WORKER,
    }
    attempt: dict[str, Any] = {
        "uid": UID,
        "token": TOKEN,
        "attempt": 2,
        "epoch": 1,
        "id": "a random one",
    }
    assert read == AttemptEvent(**{"kind": EventKind.FAILED, **about, **attempt, **GO_SAID[name]})
    assert read.routing_key == GO_EVENTS[name]["key"]


@pytest.mark.parametrize("name", GO_HEARTBEATS)
def test_a_heartbeat_of_a_go_worker(name: str) -> None:
    body = cloudevents.encode(
        type="dev.taskqueue.worker.heartbeat.v1",
        source=f"/workers/{GO_WORKER}",
        subject="shop/images",
        queue="images",
        data=GO_HEARTBEATS[name],
    )
    read = heartbeat.decode(body)
    assert (read.pod, read.slots, read.cpus, read.state) == (GO_WORKER, 4, 2, WorkerState.READY)
    if name == "busy":
        assert read.running == (RunningAttempt(UID, TOKEN, 40, "page 4 of 10"),)
        assert read.busy == 2  # a direct message, too
    else:
        assert (read.node, read.running, read.busy) == ("", (), 0)


@pytest.mark.parametrize("name", EVENTS)
def test_the_attempt_that_an_event_ends_is_found_even_where_the_rest_is_broken(name: str) -> None:
    claim = outcome.claimed_attempt(orjson.dumps(EVENTS[name]["body"]))
    if name == "started":
        assert claim is None  # it goes on
    elif name in SAID:
        assert claim == AttemptClaim(uid=UID, token=TOKEN, attempt=2, epoch=1)


USUAL = Heartbeat(
    namespace="shop",
    queue="images",
    pod=WORKER,
    node="node-1",
    cpus=1.5,
    slots=4,
    handlers=("crop", "resize"),
    running=(
        RunningAttempt(UID, TOKEN, 40, "page 4 of 10"),
        RunningAttempt("another-uid", "k1.0123"),
    ),
    state=WorkerState.READY,
    busy=3,
)
IDLE: dict[str, Any] = {"running": (), "busy": 0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("busy", {}),
        ("idle, of nobody knows where", {"node": "", "cpus": 0.0, **IDLE}),
        ("draining", {"state": WorkerState.DRAINING}),
        ("stopped", {"state": WorkerState.STOPPED, **IDLE}),
    ],
)
def test_a_heartbeat(name: str, changes: dict[str, Any]) -> None:
    read = heartbeat.decode(orjson.dumps(HEARTBEATS[name]["body"]))
    for field in Heartbeat.__slots__:
        assert getattr(read, field) == changes.get(field, getattr(USUAL, field)), field
    assert read.routing_key == HEARTBEATS[name]["key"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cancel", command.WorkerCommand(CommandKind.CANCEL, token=TOKEN, uid=UID)),
        ("release", command.WorkerCommand(CommandKind.RELEASE, token=TOKEN, uid=UID)),
        ("drain", command.WorkerCommand(CommandKind.DRAIN, pod=WORKER, namespace="shop")),
    ],
)
def test_a_command(name: str, expected: command.WorkerCommand) -> None:
    read = command.decode(orjson.dumps(COMMANDS[name]))
    assert read == expected
    assert not read.is_announcement


@pytest.mark.parametrize(
    ("name", "exchange"),
    [("direct", ""), ("a worker's", ""), ("the operator's", "taskqueue.outcomes")],
)
def test_a_dead_letter(name: str, exchange: str) -> None:
    properties = BasicProperties(**DEAD_LETTERS[name]["properties"])
    claim = AttemptClaim(uid=UID, token=TOKEN, attempt=2, epoch=1)
    assert claimed_attempt(properties) == (None if name == "direct" else claim)
    assert published_to(properties.headers or {}) == exchange


ENDED: dict[str, Any] = {
    "attempts": 2,
    "start_time": NOW - 3,
    "completion_time": NOW,
    "worker": WORKER,
}
STATES = {
    "succeeded": TaskState(phase=Phase.SUCCEEDED, result={"width": 640}, **ENDED),
    "failed": TaskState(
        phase=Phase.FAILED,
        reason="NonRetryable",
        message="attempt 2 of 3: NotFound: no such page",
        history=(AttemptRecord(2, "Failed", NOW - 3, NOW, WORKER, "NotFound", "no such page"),),
        **ENDED,
    ),
    "cancelled": TaskState(
        phase=Phase.CANCELLED, reason="CancelRequested", message="by spec.cancel", **ENDED
    ),
}


def completion(name: str) -> CompletionEvent:
    """Return the completion event of today for what the older operator published one about."""
    if name in STATES:
        spec = TaskSpec(queue="images", handler="resize")
        task = Task(
            namespace="shop", name="resize-1", uid=UID, generation=1, created=NOW - 9, spec=spec
        )
        return task_completion(task, STATES[name])
    return direct_completion(event(name), arrived_with=EVENTS[name]["key"], now=NOW)


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_completion_event_is_the_same_from_either_operator(name: str) -> None:
    """So the end of a Task that both have announced is one event to those who listen."""
    made = completion(name)
    assert orjson.loads(made.encode()) == COMPLETIONS[name]["body"]
    assert made.routing_key == COMPLETIONS[name]["key"]


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_subscriber_reads_a_completion_event(name: str) -> None:
    phase = COMPLETIONS[name]["body"]["data"]["phase"]
    assert f" {phase} after 2 attempts" in line(COMPLETIONS[name]["body"])
