"""Whatever reaches the operator's queues: each message is acknowledged, the bad ones are parked.

The operator's link, channel, publisher, inbox and machine are real; so are the bytes between them
and the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec as amqp

from taskqueue.amqp.channel import Delivery
from taskqueue.contract import batch, command, heartbeat, outcome
from taskqueue.contract.completion import direct_completion
from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    HEARTBEATS_QUEUE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
    ContractError,
    queue_of_key,
)
from taskqueue.controller.queues import broker_link, topology_watch
from taskqueue.controller.queues.broker_link import BrokerLink, InboxMarkers, LinkUp
from taskqueue.model.task import Phase
from taskqueue.model.worker import WorkerState
from tests.fuzz import field_tables as tables
from tests.fuzz.cases import CUTS, FEW, MANY, MESSAGES, PARAMETERS, of_several
from tests.fuzz.json_documents import bodies
from tests.fuzz.wire_broker import FRAME_MAX, Cut, RawMessage, WireBroker
from tests.unit.controller.fakes import TOKENS, TaskHarness
from tests.unit.controller.virtual_time import VirtualLoop

#: Tasks with an attempt at work; the last one gets a good outcome after everything else.
TASKS = ("a", "b", "last")


def _event(task: str, kind: outcome.EventKind, **changes: Any) -> dict[str, Any]:
    uid = f"uid-{task}"
    values: dict[str, Any] = {
        "kind": kind,
        "namespace": "shop",
        "queue": "q",
        "task": task,
        "uid": uid,
        "token": TOKENS.sign(uid, 1, 0),
        "attempt": 1,
        "epoch": 0,
        "worker": "pod-1",
        "seconds": 0.25,
        "id": "event-1",
    }
    encoded = outcome.encode(outcome.AttemptEvent(**{**values, **changes}))
    document: dict[str, Any] = orjson.loads(encoded)
    return document


_ERROR = outcome.EventError(type="ValueError", message="no")
_STORED = outcome.EventResultRef(
    size_bytes=100_000, content_type="application/json", sha256="0123abcd" * 8
)
_UNKNOWN = outcome.EventError(type="UnknownHandler", message="no such handler", reserved=True)
EVENTS = [
    _event("a", outcome.EventKind.SUCCEEDED, result={"a": [1, {"b": "c"}]}),
    _event("a", outcome.EventKind.SUCCEEDED, result={"text": "x" * 40_000}),
    _event("a", outcome.EventKind.SUCCEEDED, result_ref=_STORED),
    _event("a", outcome.EventKind.FAILED, error=_ERROR, output="the last lines\n"),
    _event("a", outcome.EventKind.FAILED, error=_UNKNOWN),
    _event("a", outcome.EventKind.FAILED),
    _event("a", outcome.EventKind.STARTED),
    _event("a", outcome.EventKind.CHECKPOINT, checkpoint={"done": 3}),
    _event("a", outcome.EventKind.SNOOZED, seconds=5.0),
    _event("b", outcome.EventKind.FAILED, error=_ERROR, retry_after_seconds=2.5),
    _event("b", outcome.EventKind.RELEASED),
    _event("b", outcome.EventKind.CANCELLED),
    _event("nobody", outcome.EventKind.SUCCEEDED, result={}),
    _event("nobody", outcome.EventKind.STARTED),
    _event("nobody", outcome.EventKind.RELEASED),
    _event("b", outcome.EventKind.SUCCEEDED, token="k.forged"),
    _event("q", outcome.EventKind.SUCCEEDED, uid="", token="", correlation_id="order-7"),
]


def _bad(kind: outcome.EventKind, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return an event with what none of ours has."""
    document = _event("a", kind, **changes)
    document["data"] |= data
    return document


_DEEP: dict[str, Any] = {}
for _ in range(150):
    _DEEP = {"a": _DEEP}
BAD_EVENTS = [
    _bad(outcome.EventKind.SUCCEEDED, {"result": {"n": 2**64 - 1}}),
    _bad(outcome.EventKind.SUCCEEDED, {"result": _DEEP}),
    *(
        _bad(outcome.EventKind.SUCCEEDED, {"resultRef": found})
        for found in (
            7,
            {},
            {"sizeBytes": 7},
            {"sizeBytes": 7, "contentType": "image/png"},
            {"sizeBytes": 7, "contentType": "png", "sha256": "0" * 64},
        )
    ),
    _bad(outcome.EventKind.SUCCEEDED, {"attempt": 2**64 - 1}),
    _bad(outcome.EventKind.SUCCEEDED, {"padding": "x" * 70_000}),
    _bad(outcome.EventKind.CHECKPOINT, {"checkpoint": {"text": "x" * 20_000}}, checkpoint={}),
    _bad(outcome.EventKind.CHECKPOINT, {"checkpoint": None}, checkpoint={}),
]
HEARTBEAT: dict[str, Any] = orjson.loads(
    heartbeat.encode(
        heartbeat.Heartbeat(
            namespace="shop",
            queue="q",
            pod="pod-1",
            node="node-1",
            cpus=2.0,
            slots=4,
            handlers=("resize",),
            running=(
                heartbeat.RunningAttempt("uid-a", TOKENS.sign("uid-a", 1, 0), 50, "half"),
                heartbeat.RunningAttempt("uid-b", TOKENS.sign("uid-b", 1, 0)),
                heartbeat.RunningAttempt("uid-b", TOKENS.sign("uid-b", 1, 0), attempt=1, epoch=0),
                heartbeat.RunningAttempt("uid-b", TOKENS.sign("uid-b", 2, 0), attempt=2, epoch=0),
                heartbeat.RunningAttempt("uid-b", "k.forged", attempt=1, epoch=0),
                heartbeat.RunningAttempt("uid-nobody", "k.1"),
            ),
            state=WorkerState.READY,
            busy=1,
        )
    )
)
HEARTBEAT["id"] = "beat-1"


def outcome_of(document: dict[str, Any]) -> tuple[str, RawMessage]:
    """Return an event as a worker sends it."""
    key = "shop.q." + document["type"].removeprefix("dev.taskqueue.").removesuffix(".v1")
    body = orjson.dumps(document)
    return INBOX_QUEUE, RawMessage(OUTCOMES_EXCHANGE.encode(), key.encode(), b"\x00\x00", body)


def heartbeat_of(document: dict[str, Any]) -> tuple[str, RawMessage]:
    """Return a heartbeat as a worker sends it."""
    body, key = orjson.dumps(document), b"shop.q.worker.heartbeat"
    return HEARTBEATS_QUEUE, RawMessage(HEARTBEATS_EXCHANGE.encode(), key, b"\x00\x00", body)


_PROPERTIES = (tables.GOOD_PROPERTIES | tables.BAD_PROPERTIES).map(
    lambda properties: properties[: FRAME_MAX - 20]
)
_ODD_KEYS = st.one_of(
    st.sampled_from([b"k" * 255, b"." * 255, b"\xff" * 255, b"", b"k" * 254 + b"."]),
    st.binary(max_size=255),
    st.text(max_size=20).map(str.encode),
)
#: Of the TaskQueue that is served, and of others: by bindings of older operators.
_KEYS = st.one_of(
    st.just(b"shop.q.task.succeeded"),
    st.just(b"shop.q"),
    _ODD_KEYS.map(lambda odd: (b"shop.q." + odd)[:255]),
    _ODD_KEYS,
)


def dead_letter_of(uid: str, token: str) -> tuple[str, RawMessage]:
    """Return a dead letter that claims to be the first attempt of a Task."""
    headers = {
        b"tq-token": tables.long_string(b"S", token.encode()),
        b"tq-attempt": b"I\x00\x00\x00\x01",
        b"tq-epoch": b"I\x00\x00\x00\x00",
    }
    values = {
        tables.HEADERS: tables.table(list(headers.items())),
        tables.SHORT_STRINGS["correlation_id"]: tables.short(uid.encode()),
    }
    properties = tables.encoded_properties(values)
    return INBOX_QUEUE, RawMessage(DEAD_EXCHANGE.encode(), b"shop.q", properties, b"{}")


def _dead_properties(draw: st.DrawFn) -> bytes:
    """Return the properties of a work message of Task a, with some of its headers changed."""
    uid, attempt = draw(st.sampled_from([("uid-a", 1), ("uid-a", 2), ("uid-nobody", 1)]))
    token = TOKENS.sign(uid, attempt, 0)
    headers = {
        b"tq-token": tables.long_string(b"S", token.encode()),
        b"tq-attempt": b"I\x00\x00\x00" + bytes((attempt,)),
        b"tq-epoch": b"I\x00\x00\x00\x00",
        b"x-last-death-reason": tables.long_string(b"S", b"delivery_limit"),
    }
    for name in draw(st.lists(st.sampled_from([*headers, b"tq-error"]), max_size=2)):
        headers[name] = draw(tables.GOOD_VALUES | tables.BAD_VALUES)
    values = {
        tables.HEADERS: tables.table(list(headers.items())),
        tables.SHORT_STRINGS["correlation_id"]: tables.short(uid.encode()),
    }
    return tables.encoded_properties(values)[: FRAME_MAX - 20]


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, RawMessage]:
    """Return a queue of the operator's, and what reaches it."""
    match draw(st.sampled_from(["outcome"] * 3 + ["batch", "heartbeat", "dead"])):
        case "outcome":
            body = draw(
                st.sampled_from(EVENTS).flatmap(bodies)
                | st.sampled_from(BAD_EVENTS).map(orjson.dumps)
            )
            properties = draw(st.sampled_from([b"\x00\x00"] * 3) | _PROPERTIES)
            message = RawMessage(OUTCOMES_EXCHANGE.encode(), draw(_KEYS), properties, body)
        case "batch":
            parts = draw(st.lists(st.sampled_from(EVENTS).flatmap(bodies), max_size=4))
            body = draw(st.sampled_from([batch.join(parts)] * 4 + [batch.join(parts) + b"]"]))
            message = RawMessage(OUTCOMES_EXCHANGE.encode(), draw(_KEYS), _BATCH, body)
        case "dead":
            properties = _dead_properties(draw) if draw(st.booleans()) else draw(_PROPERTIES)
            message = RawMessage(DEAD_EXCHANGE.encode(), b"shop.q", properties, b"{}")
        case _:
            key = draw(st.just(b"shop.q.worker.heartbeat") | _KEYS)
            body = draw(bodies(HEARTBEAT))
            properties = draw(st.just(b"\x00\x00") | _PROPERTIES)
            message = RawMessage(HEARTBEATS_EXCHANGE.encode(), key, properties, body)
            return HEARTBEATS_QUEUE, message
    return INBOX_QUEUE, message


#: Properties of a batch of events.
_BATCH = tables.encoded_properties(
    {tables.SHORT_STRINGS["content_type"]: tables.short(batch.CONTENT_TYPE.encode())}
)


@dataclass(frozen=True)
class Read:
    """A message as the intake got it, and why it is bad; "": it is not."""

    message: Delivery
    bad: str


class Operator:
    """A link of the operator's to a broker, three Tasks with an attempt at work, and what came."""

    def __init__(self) -> None:
        logging.disable()
        self.loop = VirtualLoop()
        self.broker = WireBroker(on_published=self._route)
        self.read: list[Read] = []
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.harness = TaskHarness(max_attempts=2)
        self.link = BrokerLink(
            PARAMETERS,
            installation="default",
            feed_synced=asyncio.Event(),
            markers=InboxMarkers(),
            random=Random(0),
        )
        self.link.on_message = self._on_message
        self.link._feed_synced.set()
        self._connects = mock.patch.object(broker_link, "connect", self.broker.connect)
        self._connects.start()
        is_up = asyncio.Event()
        self.link.subscribe(is_up.set)
        self._running = asyncio.create_task(self.link.run())
        await is_up.wait()
        self.harness.broker = self.link.broker
        for name in TASKS:
            await self.harness.published(name)
        self.broker.published.clear()
        self.broker.settled.clear()

    def close(self) -> None:
        self._connects.stop()
        self.loop.die()
        logging.disable(logging.NOTSET)

    def _route(self, message: RawMessage) -> None:
        """Pass on what the inbox is bound for."""
        if message.exchange in (OUTCOMES_EXCHANGE.encode(), DEAD_EXCHANGE.encode()):
            self.loop.call_soon(self.broker.deliver, INBOX_QUEUE, message)

    def _on_message(self, delivery: Delivery, link: BrokerLink) -> None:
        self.read += [Read(each, _badness(each)) for each in _events_of(delivery)]
        self.harness.tasks.inbox.on_delivery(delivery, link)

    def settle(self) -> None:
        """Let everything happen that follows: writes succeed, pauses end."""
        for _ in range(4):
            while self.harness.writer.writes:
                self.loop.do(self.harness.writer.writes.pop(0).succeed)
            self.loop.pass_time(5)


def _events_of(delivery: Delivery) -> list[Delivery]:
    """Return each event of a batch as a message; else the message."""
    if delivery.properties.content_type != batch.CONTENT_TYPE:
        return [delivery]
    try:
        events = batch.split(delivery.body)
    except ContractError as error:
        return [replace(delivery, problem=str(error))]
    return [replace(delivery, body=event) for event in events]


def _badness(delivery: Delivery) -> str:
    if delivery.exchange != OUTCOMES_EXCHANGE:
        return ""
    if delivery.problem:
        return delivery.problem
    try:
        report = outcome.decode(delivery.body)
        if report.is_direct:
            direct_completion(report, arrived_with=delivery.routing_key, now=0.0)
    except ContractError as error:
        return str(error)
    return ""


def reasons(message: RawMessage) -> str:
    properties = amqp.BasicProperties()
    properties.decode(message.properties)
    return str((properties.headers or {}).get("tq-error", ""))


def every_message_is_acknowledged(sent: list[tuple[str, RawMessage]], cut: Cut) -> None:
    operator = Operator()
    try:
        operator.broker.cut = cut
        for queue, message in sent:
            operator.loop.do(partial(operator.broker.deliver, queue, message))
        operator.settle()
        good = _event("last", outcome.EventKind.SUCCEEDED, result={"n": 1})
        operator.loop.do(partial(operator.broker.deliver, *outcome_of(good)))
        operator.settle()
        _check(operator)
    finally:
        operator.close()


def _check(operator: Operator) -> None:
    assert not operator.loop.problems
    assert not operator.harness.problems
    assert isinstance(operator.link.state, LinkUp), "the link was lost"
    assert operator.broker.unacknowledged == [], "the inbox has lost a slot"
    assert {each.verb for each in operator.broker.settled} == {"ack"}
    assert operator.harness.states.latest["uid-last"].status.phase is Phase.SUCCEEDED
    parked = [each for each in operator.broker.published if each.exchange == b"taskqueue.dead"]
    assert all(reasons(each) for each in parked), "parked without a reason"
    bad: Counter[bytes] = Counter()
    foreign = 0
    for each in operator.read:
        if each.bad and queue_of_key(each.message.routing_key) in operator.harness.queues:
            bad[each.message.body] += 1
        elif each.bad:
            foreign += 1
    failed = sum(
        attempt.reason in ("InvalidOutcome", "InvalidResult")
        for tracked in operator.harness.states.latest.values()
        for attempt in tracked.status.history
    )
    copies = Counter(letter.body for letter in parked)
    # One that provably is about an attempt which is awaited fails that attempt instead. One about a
    # TaskQueue of another operator is parked by that one.
    assert not copies - bad, "parked twice, or without need"
    not_parked = (bad - copies).total()
    assert not_parked <= failed <= not_parked + foreign, "bad, and only acknowledged"


def test_what_the_operator_understands_is_said_again_each_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology_watch, "TOPOLOGY_CHECK_SECONDS", 600.0)  # for the time it takes
    operator = Operator()
    try:
        operator.loop.pass_time(2 * 3600 + 1)
        said = [each for each in operator.broker.published if each.key == b"taskqueue.control"]
        assert [command.decode(each.body) for each in said] == [command.FIRST_COMMAND] * 2
    finally:
        operator.close()


SENT = st.lists(messages(), min_size=1, max_size=MESSAGES)


@of_several(FEW)
@given(sent=SENT, cut=CUTS)
def test_every_message_is_acknowledged_and_bad_ones_are_parked(
    sent: list[tuple[str, RawMessage]], cut: Cut
) -> None:
    every_message_is_acknowledged(sent, cut)


@pytest.mark.long
@pytest.mark.timeout(3600)
@of_several(MANY)
@given(sent=SENT, cut=CUTS)
def test_every_message_is_acknowledged_of_many_new_ones(
    sent: list[tuple[str, RawMessage]], cut: Cut
) -> None:
    every_message_is_acknowledged(sent, cut)
