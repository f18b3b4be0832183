"""Whatever reaches a worker's queue and its commands: each message ends, the bad ones are parked.

The worker's runtime, channel, publisher and command consumer are real; so are the bytes between
them and the broker. Handlers succeed at once.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec as amqp

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.publisher import Publisher
from taskqueue.contract import batch, outcome
from taskqueue.contract.command import FIRST_COMMAND, WorkerCommand, encode
from taskqueue.contract.names import CONTROL_STREAM, ContractError, work_queue
from taskqueue.contract.work import WorkMessage, parse_work
from taskqueue.model.command import CommandKind
from taskqueue.worker.attempt_events import payload_of
from taskqueue.worker.command_consumer import CommandConsumer
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.runtime import Runtime
from tests.fuzz import field_tables as tables
from tests.fuzz.cases import CUTS, FEW, MANY, MESSAGES, PARAMETERS, of_several
from tests.fuzz.json_documents import bodies
from tests.fuzz.wire_broker import FRAME_MAX, Cut, RawMessage, WireBroker
from tests.unit.controller.virtual_time import VirtualLoop
from tests.unit.worker.fakes import FakeExecutor, settings

QUEUE = work_queue("shop", "q")
PAYLOAD = {"width": 10, "sizes": [1, 2.5, {"unit": "px"}], "name": "caf\u00e9"}


def _text(value: str) -> bytes:
    return tables.long_string(b"S", value.encode())


def _number(value: int) -> bytes:
    return b"I" + struct.pack(">i", value)


#: Of a work message as the operator writes it.
HEADERS = {
    b"tq-version": _number(1),
    b"tq-namespace": _text("shop"),
    b"tq-queue": _text("q"),
    b"tq-task": _text("t"),
    b"tq-attempt": _number(1),
    b"tq-max-attempts": _number(3),
    b"tq-epoch": _number(0),
    b"tq-token": _text("k.1"),
    b"tq-max-deliveries": _number(3),
    b"tq-timeout-seconds": _number(30),
    b"tq-checkpointed": b"t\x00",
}
_ODD = tables.GOOD_VALUES | tables.BAD_VALUES

SCHEDULED, A_TIME = b"tq-scheduled-time", "2026-01-02T03:00:00Z"


@st.composite
def _work_properties(draw: st.DrawFn) -> bytes:
    """Return the properties of a work message, with some of its headers changed or gone."""
    headers = {**HEADERS, b"tq-token": _text(draw(st.sampled_from(["k.1", "k.2", "k.3"])))}
    if draw(st.booleans()):
        del headers[b"tq-checkpointed"]  # of the first operators
    if draw(st.booleans()):  # of a batch's item, or a schedule's run
        headers |= draw(st.sampled_from([{b"tq-index": _number(7)}, {SCHEDULED: _text(A_TIME)}]))
    names = [*HEADERS, b"tq-fence", b"tq-checkpoint", b"tq-index", SCHEDULED, b"traceparent"]
    for name in draw(st.just([]) | st.lists(st.sampled_from(names), max_size=3)):
        match draw(st.sampled_from(["odd", "odd", "long", "large", "gone"])):
            case "gone":
                headers.pop(name, None)
            case "long":
                headers[name] = _text("n" * draw(st.sampled_from([254, 255, 256, 5000])))
            case "large":
                number = draw(st.sampled_from([2**63 - 1, -(2**63), -1, 0, 2**31]))
                headers[name] = b"l" + struct.pack(">q", number)
            case _:
                headers[name] = draw(_ODD)
    texts = {"type": b"resize", "correlation_id": b"uid-t", "message_id": b"m"}
    values = {tables.SHORT_STRINGS[name]: tables.short(text) for name, text in texts.items()}
    for flag in draw(st.lists(st.sampled_from(sorted(values)), max_size=1)):
        values[flag] = tables.short(draw(st.binary(max_size=255) | st.just(b"\xc3\xa9" * 127)))
    return tables.encoded_properties(
        {**values, tables.HEADERS: tables.table(list(headers.items()))}
    )


_ANY = _work_properties() | _work_properties() | tables.GOOD_PROPERTIES | tables.BAD_PROPERTIES
_PROPERTIES = _ANY.map(lambda properties: properties[: FRAME_MAX - 20])
COMMANDS: list[dict[str, Any]] = [
    {"order": "cancel", "token": "k.1", "uid": "uid-t"},
    {"order": "release", "token": "k.2", "uid": "uid-t"},
    {"order": "drain", "pod": "pod-1", "namespace": "shop"},
    {
        "order": "cancel",
        "token": "none",
        "uid": "none",
        "understands": ["batches", "reserved-types"],
        "installation": "default",
    },
]


@st.composite
def work_messages(draw: st.DrawFn) -> RawMessage:
    exchange = draw(st.sampled_from([b"taskqueue.work", b"taskqueue.direct", b""]))
    return RawMessage(exchange, b"shop.q", draw(_PROPERTIES), draw(bodies(PAYLOAD)))


@st.composite
def commands(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Return a body, and headers beside the offset that the broker adds."""
    body = draw(bodies(draw(st.sampled_from(COMMANDS))))
    headers = draw(st.lists(st.tuples(st.binary(max_size=9), _ODD), max_size=1))
    return body, headers, draw(st.just(b"k") | st.binary(max_size=255))


class Worker:
    """A runtime on its two connections, and what it was given."""

    def __init__(self) -> None:
        logging.disable()
        self.loop = VirtualLoop()
        self.broker = WireBroker(on_consume=self._on_consume)
        #: Bodies of bad messages, and of those of them whose attempt may be answered unread: it has
        #: ended, or a command has named it.
        self.bad: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()
        self._offset = 0
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self.executor = FakeExecutor()
        self.outbox = OutcomeOutbox(loop)
        publishing = await self.broker.connect(PARAMETERS, name="publish")
        self.outbox.attach(await Publisher.open(publishing))
        self.runtime = Runtime(
            settings(),
            self.executor,
            self.outbox,
            loop,
            on_change=lambda: None,
            on_busy_changed=lambda: None,
            abort=lambda *_, **__: None,
        )
        consuming = await self.broker.connect(PARAMETERS, name="consume")
        caught_up = asyncio.Event()
        self.drains = 0
        consumer = CommandConsumer(
            namespace="shop",
            queue="q",
            pod="pod-1",
            on_command=self.runtime.on_command,
            on_drain=self._on_drain,
        )
        self._following = asyncio.ensure_future(consumer.follow(consuming, caught_up.set))
        await caught_up.wait()
        channel = await consuming.channel()
        self.runtime.on_channel_opened(channel)
        await channel.consume(QUEUE, self._on_delivery, lambda reason: None)

    def close(self) -> None:
        self.loop.die()
        logging.disable(logging.NOTSET)

    def _on_drain(self) -> None:
        self.drains += 1

    def _on_consume(self, queue: str) -> None:
        if queue == CONTROL_STREAM:
            self.broker.deliver(queue, _command_message(encode(FIRST_COMMAND), [], b"k", 0))

    def _on_delivery(self, delivery: Delivery) -> None:
        bad, token = _badness(delivery)
        known = self.runtime._by_token, self.runtime._commands, self.runtime._reporter.cache
        if bad and token and any(each.get(token) is not None for each in known):
            self.answered[delivery.body] += 1
        elif bad:
            self.bad[delivery.body] += 1
        self.runtime.on_delivery(delivery)

    def send_command(self, body: bytes, headers: list[tuple[bytes, bytes]], key: bytes) -> None:
        self._offset += 1
        self.broker.deliver(CONTROL_STREAM, _command_message(body, headers, key, self._offset))

    def run_all(self) -> None:
        """Let every attempt succeed that is started."""
        while self.executor.started:
            self.loop.do(self.executor.started.pop(0).succeed)
        self.loop.pass_time(1)


def _command_message(
    body: bytes, headers: list[tuple[bytes, bytes]], key: bytes, offset: int
) -> RawMessage:
    entries = [(b"x-stream-offset", b"l" + struct.pack(">q", offset)), *headers]
    properties = tables.encoded_properties({tables.HEADERS: tables.table(entries)})
    return RawMessage(b"", key, properties[: FRAME_MAX - 20], body)


def _badness(delivery: Delivery) -> tuple[bool, str]:
    """Return whether a message is bad, and its token where that can be read."""
    if delivery.problem:
        return True, ""
    token = ""
    try:
        message = parse_work(delivery.properties, delivery.body, exchange=delivery.exchange)
        if isinstance(message, WorkMessage):
            token = message.token
            payload_of(message)
    except ContractError:
        return True, token
    return False, token


Work = list[RawMessage]
Commands = list[tuple[bytes, list[tuple[bytes, bytes]], bytes]]


def every_message_ends(work: Work, orders: Commands, cut: Cut) -> None:
    worker = Worker()
    try:
        worker.broker.cut = cut
        for order in orders:
            worker.loop.do(partial(worker.send_command, *order))
        for message in work:
            worker.loop.do(partial(worker.broker.deliver, QUEUE, message))
        worker.run_all()
        last = work_of("k.last", task="last")
        worker.loop.do(partial(worker.broker.deliver, QUEUE, last))
        cancel = encode(WorkerCommand(CommandKind.CANCEL, token="nobody", uid="u"))
        worker.loop.do(partial(worker.send_command, cancel, [], b"k"))
        worker.run_all()
        _check(worker)
    finally:
        worker.close()


def work_of(token: str, *, task: str = "t") -> RawMessage:
    """Return a work message as the operator sends it."""
    headers = {**HEADERS, b"tq-token": _text(token), b"tq-task": _text(task)}
    texts = {"type": b"resize", "correlation_id": b"uid-t"}
    values = {tables.SHORT_STRINGS[name]: tables.short(text) for name, text in texts.items()}
    table = tables.table(list(headers.items()))
    properties = tables.encoded_properties({**values, tables.HEADERS: table})
    return RawMessage(b"taskqueue.work", b"shop.q", properties, b"{}")


def _check(worker: Worker) -> None:
    assert not worker.loop.problems
    assert worker.broker.unacknowledged == [], "a message holds its slot"
    assert (worker.runtime.busy, worker.runtime.unacknowledged) == (0, 0)
    assert worker.outbox.outstanding == 0
    assert not worker.runtime._states
    assert not worker._following.done()
    published = worker.broker.published
    ends = [each for each in published if each.exchange == b"taskqueue.outcomes"]
    last = ends[-1].body
    assert outcome.decode(batch.split(last)[-1] if last.startswith(b"[") else last).task == "last"
    assert worker.runtime._commands.get("nobody") is CommandKind.CANCEL
    parked = [each for each in published if each.exchange == b"taskqueue.dead"]
    for each in parked:
        properties = amqp.BasicProperties()
        properties.decode(each.properties)
        assert (properties.headers or {}).get("tq-error"), "parked without a reason"
        assert each.key == b"shop.q"
    assert Counter(each.body for each in parked) == worker.bad


WORK = st.lists(work_messages(), min_size=1, max_size=MESSAGES)
ORDERS = st.lists(commands(), max_size=2)


@of_several(FEW)
@given(work=WORK, orders=ORDERS, cut=CUTS)
def test_every_message_ends_and_bad_ones_are_parked(work: Work, orders: Commands, cut: Cut) -> None:
    every_message_ends(work, orders, cut)


@pytest.mark.long
@pytest.mark.timeout(3600)
@of_several(MANY)
@given(work=WORK, orders=ORDERS, cut=CUTS)
def test_every_message_ends_of_many_new_ones(work: Work, orders: Commands, cut: Cut) -> None:
    every_message_ends(work, orders, cut)
