"""Every field of every document and every header, replaced by each odd value and removed.

A document is read, or refused with `ContractError`; nothing else comes of it. The same messages as
they should be go through the intakes whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp import frames
from taskqueue.contract import command, heartbeat, outcome
from taskqueue.contract.names import DIRECT_EXCHANGE, WORK_EXCHANGE, ContractError
from taskqueue.contract.work import WorkMessage, claimed_attempt, deliveries_so_far, parse_work
from taskqueue.worker.attempt_events import payload_of
from tests.fuzz import field_tables as tables
from tests.fuzz import test_operator_intake as operator
from tests.fuzz import test_worker_intake as worker
from tests.fuzz.json_documents import Raw, written
from tests.unit.controller.fakes import TOKENS

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**63, -(2**63), 2**64, "", "1", "x" * 300, [], [[]], {}),
    *(Raw(b"NaN"), Raw(b"1e400"), Raw(b'"\\ud800"'), Raw(b"[" * 1100 + b"]" * 1100)),
    *(["a"] * 300, {"percent": "high"}, {"percent": 1e300}, {"type": 5}, [{"uid": 5}], "..", "/"),
)
GONE: Any = object()

HEADER_VALUES = (
    *(b"V", b"t\x01", b"I\x00\x00\x00\x01", b"l" + b"\xff" * 8, b"T" + b"\x00" * 8),
    *(b"d" + struct.pack(">d", 0.5), b"S\x00\x00\x00\x00", b"S\x00\x00\x00\x02\xff\xff"),
    *(b"S" + struct.pack(">I", 300) + b"x" * 300, b"A\x00\x00\x00\x00", b"F\x00\x00\x00\x00"),
)


def variants(document: Any) -> Iterator[Any]:
    """Return a document with one thing after another replaced or gone."""
    yield document
    yield from ODD
    if isinstance(document, dict):
        for key, inner in document.items():
            yield {name: one for name, one in document.items() if name != key}
            for variant in variants(inner):
                yield {**document, key: variant}
    elif isinstance(document, list):
        for at, inner in enumerate(document):
            for variant in variants(inner):
                yield [*document[:at], variant, *document[at + 1 :]]


DECODERS: list[tuple[Callable[[bytes], object], Any]] = [
    *((outcome.decode, document) for document in operator.EVENTS),
    (heartbeat.decode, operator.HEARTBEAT),
    *((command.decode, document) for document in worker.COMMANDS),
]


@pytest.mark.parametrize(("decode", "document"), DECODERS)
def test_a_document_is_read_or_refused(decode: Callable[[bytes], object], document: Any) -> None:
    for variant in variants(document):
        body = written(variant)
        with suppress(ContractError):
            decode(body)
        outcome.claimed_attempt(body)


@pytest.mark.parametrize(
    "name",
    [
        *worker.HEADERS,
        *(b"tq-fence", b"tq-index", worker.SCHEDULED, b"x-delivery-count", b"traceparent"),
    ],
)
def test_a_header_is_read_or_refused(name: bytes) -> None:
    for value in (*HEADER_VALUES, GONE):
        headers = {**worker.HEADERS, name: value}
        if value is GONE:
            del headers[name]
        table = tables.table(list(headers.items()))
        for texts in ({}, {"correlation_id": b"uid-t"}):
            values = {tables.SHORT_STRINGS[key]: tables.short(text) for key, text in texts.items()}
            encoded = tables.encoded_properties({**values, tables.HEADERS: table})
            header = struct.pack(">HHQ", 60, 0, 0) + encoded
            _, properties, problem = frames.read_header(header, 0, len(header))
            assert not problem
            for body in (b"{}", b"[]", b"{", b"[" * 1100):
                with suppress(ContractError):
                    message = parse_work(properties, body, exchange=WORK_EXCHANGE)
                    if isinstance(message, WorkMessage):
                        payload_of(message)
            claimed_attempt(properties)
            deliveries_so_far(properties, redelivered=True)


@pytest.mark.parametrize(
    "deaths",
    [None, "odd", [], ["odd"], [{}], [{"exchange": 7}], [{"exchange": DIRECT_EXCHANGE}]],
)
@pytest.mark.parametrize("origin", [None, 7, WORK_EXCHANGE, DIRECT_EXCHANGE])
def test_a_dead_letter_may_say_anything_of_where_it_came_from(deaths: Any, origin: Any) -> None:
    headers = {"tq-token": "k.1", "tq-attempt": 1, "tq-epoch": 0}
    headers |= {"x-death": deaths, "tq-exchange": origin}
    claim = claimed_attempt(BasicProperties(headers=headers))
    by_death = deaths == [{"exchange": DIRECT_EXCHANGE}]
    judged_by_death = isinstance(deaths, list) and deaths and isinstance(deaths[0], dict)
    assert (claim is None) == (by_death or (not judged_by_death and origin == DIRECT_EXCHANGE))


def test_messages_as_they_should_be_pass_the_operators_intake() -> None:
    events = operator.EVENTS
    sent = [*map(operator.outcome_of, events), operator.heartbeat_of(operator.HEARTBEAT)]
    operator.every_message_is_acknowledged(sent, lambda data: [data])


def test_a_heartbeat_that_does_not_name_all_attempts_passes_the_operators_intake() -> None:
    beat = {**operator.HEARTBEAT, "data": {**operator.HEARTBEAT["data"], "runningCut": True}}
    operator.every_message_is_acknowledged([operator.heartbeat_of(beat)], lambda data: [data])


def test_a_heartbeat_that_names_attempts_of_another_queue_passes_the_operators_intake() -> None:
    beat = {**operator.HEARTBEAT, "subject": "shop/other", "taskqueue": "other"}
    queue, message = operator.heartbeat_of(beat)
    sent = [(queue, replace(message, key=b"shop.other.worker.heartbeat"))]
    operator.every_message_is_acknowledged(sent, lambda data: [data])


@pytest.mark.parametrize("uid", ["uid-a", "uid-nobody"])
@pytest.mark.parametrize("genuine", [True, False])
def test_dead_letters_pass_the_operators_intake(uid: str, genuine: bool) -> None:
    token = TOKENS.sign(uid, 1, 0) if genuine else "k.forged"
    letter = operator.dead_letter_of(uid, token)
    operator.every_message_is_acknowledged([letter, letter], lambda data: [data])


def test_messages_as_they_should_be_pass_a_workers_intake_and_may_come_twice() -> None:
    message = worker.work_of("k.1")
    body = written({"order": "cancel", "token": "k.1", "uid": "uid-t"})
    worker.every_message_ends([message, message], [], lambda data: [data])
    worker.every_message_ends([message, message], [(body, [], b"k")], lambda data: [data])


def test_a_message_whose_attempt_has_ended_passes_a_workers_intake() -> None:
    with closing(worker.Worker()) as made:
        for _ in range(2):
            made.loop.do(partial(made.broker.deliver, worker.QUEUE, worker.work_of("k.1")))
            made.run_all()
        assert made.broker.unacknowledged == []
        ends = [each for each in made.broker.published if each.exchange == b"taskqueue.outcomes"]
        assert len(ends) == 2
        assert ends[0].body == ends[1].body
