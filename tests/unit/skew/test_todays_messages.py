"""The older commit reads what today's workers, operator and producers write to older ones."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskqueue.contract import batch, command, heartbeat, outcome
from taskqueue.contract.command import FIRST_COMMAND, WorkerCommand
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind
from taskqueue.contract.outgoing import dead_letter
from taskqueue.contract.work import WorkMessage
from taskqueue.direct.message import direct_properties
from taskqueue.model.command import CommandKind
from taskqueue.model.token import TokenKeys
from taskqueue.model.worker import WorkerState
from tests.commits import needs_older
from tests.unit.skew.conftest import OlderSide, Unreadable

pytestmark = needs_older

#: The older side is one program for all examples.
asks = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
COUNTS = st.integers(1, 1000)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)

#: Written to operators of the older kind: neither a checkpoint nor a snooze.
KINDS = [kind for kind in EventKind if kind not in (EventKind.CHECKPOINT, EventKind.SNOOZED)]
EVENTS = st.builds(
    AttemptEvent,
    kind=st.sampled_from(KINDS),
    namespace=NAMES,
    queue=NAMES,
    task=NAMES,
    uid=NAMES,
    token=TEXT,
    attempt=COUNTS,
    epoch=COUNTS,
    worker=NAMES,
    seconds=st.none() | st.floats(0, outcome.LONGEST_SECONDS),
    result=st.none() | OBJECTS,
    error=st.none()
    | st.builds(
        EventError,
        type=NAMES,
        message=TEXT,
        retryable=st.booleans(),
        reserved=st.booleans(),
    ),
    retry_after_seconds=st.none() | st.floats(0, 1e6),
    deliveries=st.integers(0, 20),
    correlation_id=TEXT,
    exchange=st.sampled_from(["", "taskqueue.work", "taskqueue.direct"]),
    id=NAMES,
)
#: What the older commit knows of an event; a direct message's is empty for a Task.
KNOWN_OF_EVENTS = {each.name for each in fields(AttemptEvent)} - {
    "checkpoint",
    "result_ref",
    "output",
    "deliveries",
    "exchange",
    "correlation_id",
    "error",
}

HEARTBEATS = st.builds(
    Heartbeat,
    namespace=NAMES,
    queue=NAMES,
    pod=NAMES,
    node=st.just("") | NAMES,
    cpus=st.floats(0, 1000),
    slots=COUNTS,
    handlers=st.lists(NAMES, max_size=4).map(tuple),
    running=st.lists(
        st.builds(
            RunningAttempt,
            uid=NAMES,
            token=NAMES,
            percent=st.none() | st.integers(0, 100),
            message=TEXT,
            attempt=COUNTS,
            epoch=COUNTS,
        ),
        max_size=4,
    ).map(tuple),
    state=st.sampled_from(WorkerState),
    busy=st.integers(0, 1000),
)

MESSAGES = st.builds(
    WorkMessage,
    namespace=NAMES,
    queue=NAMES,
    task=NAMES,
    uid=NAMES,
    handler=NAMES,
    attempt=COUNTS,
    max_attempts=COUNTS,
    epoch=COUNTS,
    token=NAMES,
    max_deliveries=COUNTS,
    timeout_seconds=COUNTS,
    body=OBJECTS.map(orjson.dumps),
    trace=st.none() | st.fixed_dictionaries({"traceparent": NAMES}),
    fence=st.none() | st.integers(1, 2**40),
    scheduled_time=st.sampled_from(["", "2026-01-02T03:04:00Z"]),
    index=st.none() | st.integers(0, 99_999),
    checkpoint=st.none() | OBJECTS.map(orjson.dumps),
    checkpointed=st.booleans(),
)
KNOWN_OF_MESSAGES = {each.name for each in fields(WorkMessage)} - {
    "checkpoint",
    "checkpointed",
    "scheduled_time",
    "index",
}


@asks
@given(event=EVENTS)
def test_an_older_operator_reads_events(older_side: OlderSide, event: AttemptEvent) -> None:
    read = older_side.read("event", outcome.encode(event, prefixed=False))
    for name in KNOWN_OF_EVENTS:
        assert read[name] == getattr(event, name), name
    error = event.error
    assert read["error"] == (
        None
        if error is None
        else {"type": error.type, "message": error.message, "retryable": error.retryable}
    )
    assert read["correlation_id"] == (event.correlation_id if event.is_direct else "")


@pytest.mark.parametrize("kind", [EventKind.CHECKPOINT, EventKind.SNOOZED])
def test_an_older_operator_refuses_what_it_does_not_know(
    older_side: OlderSide, kind: EventKind
) -> None:
    """So no worker sends it one: see `work_attempt` and `snoozed`."""
    event = replace(an_event(), kind=kind, checkpoint={"page": 3}, seconds=1.0)
    with pytest.raises(Unreadable, match=kind):
        older_side.read("event", outcome.encode(event))


def test_an_older_operator_reads_no_batches(older_side: OlderSide) -> None:
    """So no worker sends one before it has read that the operator understands them."""
    with pytest.raises(Unreadable):
        older_side.read("event", batch.join([outcome.encode(an_event())]))


def an_event() -> AttemptEvent:
    return AttemptEvent(
        kind=EventKind.SUCCEEDED,
        namespace="shop",
        queue="images",
        task="resize-1",
        uid="u",
        token="k1.t",
        attempt=1,
        epoch=0,
        worker="pod-1",
    )


@asks
@given(sent=HEARTBEATS)
def test_an_older_operator_reads_heartbeats(older_side: OlderSide, sent: Heartbeat) -> None:
    read = older_side.read("heartbeat", heartbeat.encode(sent))
    for name in {each.name for each in fields(Heartbeat)} - {
        "running",
        "handlers",
        "is_running_cut",
    }:
        assert read[name] == getattr(sent, name), name
    assert tuple(read["handlers"]) == sent.handlers
    assert read["running"] == [
        {"uid": one.uid, "token": one.token, "percent": one.percent, "message": one.message}
        for one in sent.running
    ]


def test_an_older_operator_reads_a_heartbeat_that_was_cut(older_side: OlderSide) -> None:
    many = tuple(RunningAttempt("u" * 200, f"k1.{number}") for number in range(3000))
    beat = Heartbeat(
        namespace="shop",
        queue="images",
        pod="pod-1",
        node="",
        cpus=1.0,
        slots=3000,
        handlers=("resize",),
        running=many,
        state=WorkerState.READY,
        busy=3000,
    )
    read = older_side.read("heartbeat", heartbeat.encode(beat))
    assert 0 < len(read["running"]) < len(many)
    assert read["busy"] == 3000


@asks
@given(message=MESSAGES)
def test_an_older_worker_reads_attempts(older_side: OlderSide, message: WorkMessage) -> None:
    read = older_side.read("work", message.body, message.properties())
    assert read.pop("is") == "WorkMessage"
    for name in KNOWN_OF_MESSAGES - {"body"}:
        assert read[name] == getattr(message, name), name
    assert read["body"].encode() == message.body


@asks
@given(handler=st.none() | NAMES, correlation_id=st.none() | NAMES, payload=OBJECTS)
def test_an_older_worker_reads_direct_messages(
    older_side: OlderSide,
    handler: str | None,
    correlation_id: str | None,
    payload: dict[str, Any],
) -> None:
    properties = direct_properties(handler=handler, correlation_id=correlation_id)
    assert older_side.read("work", orjson.dumps(payload), properties) == {
        "is": "DirectMessage",
        "handler": handler,
        "correlation_id": correlation_id,
        "payload": payload,
    }


COMMANDS = st.builds(
    WorkerCommand,
    kind=st.sampled_from([CommandKind.CANCEL, CommandKind.RELEASE]),
    token=NAMES,
    uid=NAMES,
) | st.builds(WorkerCommand, kind=st.just(CommandKind.DRAIN), pod=NAMES, namespace=NAMES)


@asks
@given(sent=COMMANDS | st.just(FIRST_COMMAND))
def test_an_older_worker_reads_commands(older_side: OlderSide, sent: WorkerCommand) -> None:
    """The announcement is to stop an attempt that nobody has."""
    read = older_side.read("command", command.encode(sent))
    for name in ("kind", "token", "uid", "pod", "namespace"):
        assert read[name] == getattr(sent, name), name


def test_an_older_operator_reads_dead_letters(older_side: OlderSide) -> None:
    message = WorkMessage(
        namespace="shop",
        queue="images",
        task="resize-1",
        uid="u",
        handler="resize",
        attempt=2,
        max_attempts=3,
        epoch=1,
        token="k1.t",
        max_deliveries=3,
        timeout_seconds=300,
        body=b"[]",
        checkpoint=b'{"page":3}',
        checkpointed=True,
    )
    where = {"exchange": "taskqueue.work", "namespace": "shop", "queue": "images"}
    letter = dead_letter(message.properties(), b"[]", reason="no JSON object", **where)
    claim = older_side.read("dead letter", properties=letter.properties())
    assert claim == {"is": "AttemptClaim", "uid": "u", "token": "k1.t", "attempt": 2, "epoch": 1}


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_older_operator_verifies_tokens(older_side: OlderSide, epoch: int) -> None:
    keys = TokenKeys("k1", {"k1": b"a key of thirty-two bytes or more"})
    assert older_side.verify(keys.sign("u", 2, 1), "u", 2, epoch) == (epoch == 1)
