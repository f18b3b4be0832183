"""Work messages survive the wire, and what breaks the contract is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties

from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    DIRECT_EXCHANGE,
    EXCHANGE_HEADER,
    WORK_EXCHANGE,
    ContractError,
    dead_queue,
    routing_key,
    work_queue,
    work_queue_arguments,
)
from taskqueue.contract.work import (
    AttemptClaim,
    DirectMessage,
    WorkMessage,
    claimed_attempt,
    deliveries_so_far,
    parse_work,
)
from taskqueue.limits import CHECKPOINT_BYTES, DEAD_REASON_BYTES

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
HEADER_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
COUNTS = st.integers(min_value=0, max_value=2**31 - 1)

MESSAGES = st.builds(
    WorkMessage,
    namespace=NAMES,
    queue=NAMES,
    task=NAMES,
    uid=NAMES,
    handler=WORDS,
    attempt=COUNTS,
    max_attempts=COUNTS,
    epoch=COUNTS,
    token=WORDS,
    max_deliveries=COUNTS,
    timeout_seconds=COUNTS,
    body=st.binary(),
    trace=st.none() | st.fixed_dictionaries({"traceparent": WORDS}, optional={"tracestate": WORDS}),
    fence=st.none() | st.integers(0, 2**63 - 1),
    scheduled_time=st.sampled_from(["", "2026-01-02T03:04:00Z"]),
    index=st.none() | st.integers(0, 99_999),
)

HEADERS: dict[str, type] = {
    "tq-version": int,
    "tq-namespace": str,
    "tq-queue": str,
    "tq-task": str,
    "tq-attempt": int,
    "tq-max-attempts": int,
    "tq-epoch": int,
    "tq-token": str,
    "tq-max-deliveries": int,
    "tq-timeout-seconds": int,
}


def over_the_wire(properties: BasicProperties) -> BasicProperties:
    received = BasicProperties()
    received.decode(b"".join(properties.encode()))
    return received


def example() -> WorkMessage:
    return WorkMessage(
        namespace="shop",
        queue="images",
        task="resize-1",
        uid="0b1c",
        handler="resize",
        attempt=2,
        max_attempts=3,
        epoch=1,
        token="k1.abc",
        max_deliveries=4,
        timeout_seconds=60,
        body=b"{}",
    )


@given(MESSAGES)
def test_a_work_message_is_read_as_it_was_written(message: WorkMessage) -> None:
    assert (
        parse_work(over_the_wire(message.properties()), message.body, exchange=WORK_EXCHANGE)
        == message
    )


def test_every_publish_has_a_message_id_of_its_own() -> None:
    message = example()
    assert message.properties().message_id != message.properties().message_id


def test_the_headers_are_those_of_the_contract() -> None:
    properties = over_the_wire(example().properties())
    found = {name: type(value) for name, value in properties.headers.items()}
    assert found == {**HEADERS, "tq-checkpointed": bool}
    assert properties.content_type == "application/json"
    assert properties.type == "resize"
    assert properties.correlation_id == "0b1c"
    assert properties.app_id == "taskqueue"
    assert properties.delivery_mode == 2
    assert (properties.priority, properties.expiration, properties.reply_to) == (None, None, None)


@pytest.mark.parametrize("name", [name for name in HEADERS if name != "tq-token"])
@pytest.mark.parametrize("value", [None, b"\xff", True, [1], {"a": 1}, ""])
def test_a_missing_or_wrong_header_is_named(name: str, value: Any) -> None:
    properties = example().properties()
    properties.headers[name] = value
    with pytest.raises(ContractError, match=f"header {name} "):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


@pytest.mark.parametrize("value", [b"\xff", 7, "", "noon", "2026-13-01T00:00:00Z", "2" * 300])
def test_a_scheduled_time_that_is_no_time_is_named(value: Any) -> None:
    properties = example().properties()
    properties.headers["tq-scheduled-time"] = value
    with pytest.raises(ContractError, match="header tq-scheduled-time "):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


@pytest.mark.parametrize("value", [b"\xff", 7, ["a"], ""])
def test_a_token_that_is_no_text_is_named(value: Any) -> None:
    properties = example().properties()
    properties.headers["tq-token"] = value
    with pytest.raises(ContractError, match="header tq-token "):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


def test_a_fence_is_a_header_only_where_there_is_one() -> None:
    assert "tq-fence" not in example().properties().headers
    assert replace(example(), fence=7).properties().headers["tq-fence"] == 7


@pytest.mark.parametrize("value", [None, "7", True])
def test_a_fence_that_is_no_number_is_named(value: Any) -> None:
    properties = example().properties()
    properties.headers["tq-fence"] = value
    with pytest.raises(ContractError, match="header tq-fence "):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


def test_checkpoint_headers_are_there_as_far_as_the_operator_knows_them() -> None:
    saved = replace(example(), checkpoint=b'{"step":1}', checkpointed=True)
    headers = saved.properties().headers
    assert (headers["tq-checkpointed"], headers["tq-checkpoint"]) == (True, '{"step":1}')
    assert (
        parse_work(over_the_wire(saved.properties()), saved.body, exchange=WORK_EXCHANGE) == saved
    )
    assert "tq-checkpoint" not in example().properties().headers
    older = replace(example(), checkpointed=None)
    assert "tq-checkpointed" not in older.properties().headers
    assert (
        parse_work(over_the_wire(older.properties()), older.body, exchange=WORK_EXCHANGE) == older
    )


def test_another_version_says_what_to_do() -> None:
    properties = example().properties()
    properties.headers["tq-version"] = 2
    with pytest.raises(ContractError, match="tq-version is 2, this worker speaks 1"):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


def test_a_missing_uid_is_named() -> None:
    properties = example().properties()
    properties.correlation_id = None
    with pytest.raises(ContractError, match="correlation_id"):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"[1, 2]", {"text": "[1, 2]"}),
        (b"hello", {"text": "hello"}),
        (b"", {"text": ""}),
        (b"\xff", {"text": "�"}),
        (b"[" * 100_000, {"text": "[" * 100_000}),
    ],
    ids=["object", "list", "text", "empty", "not text", "very deep"],
)
def test_a_message_without_a_token_is_anybodys(body: bytes, payload: dict[str, Any]) -> None:
    properties = BasicProperties(type="greet", correlation_id="c1")
    assert parse_work(properties, body, exchange=WORK_EXCHANGE) == DirectMessage(
        handler="greet", correlation_id="c1", payload=payload
    )


def test_a_direct_message_needs_no_properties_at_all() -> None:
    assert parse_work(BasicProperties(), b"hello", exchange=WORK_EXCHANGE) == DirectMessage(
        handler=None, correlation_id=None, payload={"text": "hello"}
    )


@given(MESSAGES, st.dictionaries(st.text(max_size=20), HEADER_VALUES, max_size=4))
def test_what_comes_by_the_exchange_for_direct_messages_is_direct_whatever_its_headers_say(
    message: WorkMessage, headers: dict[str, Any]
) -> None:
    properties = message.properties()
    properties.headers = {**(properties.headers or {}), **headers}
    parsed = parse_work(properties, message.body, exchange=DIRECT_EXCHANGE)
    assert isinstance(parsed, DirectMessage)
    assert parsed.handler == (message.handler or None)


@pytest.mark.parametrize(
    ("headers", "claims"),
    [
        ({}, True),
        ({EXCHANGE_HEADER: WORK_EXCHANGE}, True),
        ({EXCHANGE_HEADER: DIRECT_EXCHANGE}, False),
        ({"x-death": [{"exchange": DIRECT_EXCHANGE}]}, False),
        ({"x-death": [{"exchange": DIRECT_EXCHANGE}], EXCHANGE_HEADER: WORK_EXCHANGE}, False),
        ({"x-death": [{"exchange": WORK_EXCHANGE}], EXCHANGE_HEADER: DIRECT_EXCHANGE}, True),
        ({"x-death": ["odd"], EXCHANGE_HEADER: DIRECT_EXCHANGE}, False),
    ],
)
def test_a_dead_letter_claims_an_attempt_unless_it_was_a_direct_message(
    headers: dict[str, Any], claims: bool
) -> None:
    properties = BasicProperties(
        correlation_id="u",
        headers={"tq-token": "k.1", "tq-attempt": 1, "tq-epoch": 0, **headers},
    )
    claim = AttemptClaim(uid="u", token="k.1", attempt=1, epoch=0)
    assert claimed_attempt(properties) == (claim if claims else None)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_direct_body_becomes_an_object(body: bytes | str) -> None:
    raw = body if isinstance(body, bytes) else body.encode()
    message = parse_work(BasicProperties(), raw, exchange=WORK_EXCHANGE)
    assert isinstance(message, DirectMessage)
    assert isinstance(message.payload, dict)


@pytest.mark.parametrize(
    ("headers", "redelivered", "count"),
    [
        (None, False, 0),
        ({"x-delivery-count": 3}, True, 3),
        ({"x-delivery-count": 3}, False, 0),
        ({}, True, 0),
        ({"x-delivery-count": "3"}, True, 0),
    ],
    ids=["first", "fourth", "a publisher's own header", "unknown", "not a number"],
)
def test_deliveries_are_believed_on_a_redelivery_only(
    headers: dict[str, Any] | None, redelivered: bool, count: int
) -> None:
    assert deliveries_so_far(BasicProperties(headers=headers), redelivered=redelivered) == count


def test_names_and_arguments() -> None:
    assert routing_key("shop", "images") == "shop.images"
    assert work_queue("shop", "images") == "taskqueue.shop.images"
    assert dead_queue("shop", "images") == "taskqueue-dead.shop.images"
    arguments = work_queue_arguments("shop", "images")
    assert arguments["x-dead-letter-exchange"] == DEAD_EXCHANGE
    assert arguments["x-dead-letter-routing-key"] == "shop.images"
    assert type(arguments["x-consumer-timeout"]) is int


@pytest.mark.parametrize("name", [name for name, kind in HEADERS.items() if kind is str])
def test_a_header_that_is_too_long_is_named(name: str) -> None:
    properties = example().properties()
    properties.headers[name] = "x" * 254
    with pytest.raises(ContractError, match=f"header {name} has 254 characters"):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


def test_a_checkpoint_has_a_limit_of_its_own() -> None:
    properties = example().properties()
    properties.headers["tq-checkpoint"] = "x" * CHECKPOINT_BYTES
    parse_work(properties, b"{}", exchange=WORK_EXCHANGE)
    properties.headers["tq-checkpoint"] += "x"
    with pytest.raises(ContractError, match="header tq-checkpoint has 16385"):
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)


def test_a_trace_header_that_is_too_long_is_left_out() -> None:
    properties = example().properties()
    properties.headers |= {"traceparent": "00-1-2-01", "tracestate": "x" * 513}
    message = parse_work(properties, b"{}", exchange=WORK_EXCHANGE)
    assert isinstance(message, WorkMessage)
    assert message.trace == {"traceparent": "00-1-2-01"}


def test_an_error_about_a_header_does_not_quote_all_of_it() -> None:
    properties = example().properties()
    properties.headers["tq-attempt"] = "x" * 100_000
    with pytest.raises(ContractError) as caught:
        parse_work(properties, b"{}", exchange=WORK_EXCHANGE)
    assert len(str(caught.value)) <= DEAD_REASON_BYTES
