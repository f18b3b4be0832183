"""Events survive the wire, and what is not one is refused without any other exception."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taskqueue.contract.names import ContractError
from taskqueue.contract.outcome import (
    LONGEST_SECONDS,
    AttemptEvent,
    EventError,
    EventKind,
    EventResultRef,
    decode,
    encode,
)
from taskqueue.limits import (
    CHECKPOINT_BYTES,
    DEAD_REASON_BYTES,
    ERROR_MESSAGE_BYTES,
    EVENT_BYTES,
    OBJECT_NAME_LENGTH,
    STORED_RESULT_BYTES,
)

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NUMBERS = st.integers(min_value=-(2**53), max_value=2**53)
SECONDS = st.floats(min_value=0, max_value=1e9)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)

EVENTS = st.builds(
    AttemptEvent,
    kind=st.sampled_from(EventKind),
    namespace=NAMES,
    queue=NAMES,
    task=NAMES,
    uid=NAMES,
    token=TEXT,
    attempt=st.integers(1, 1000),
    epoch=st.integers(0, 1000),
    worker=NAMES,
    seconds=st.none() | st.floats(0, LONGEST_SECONDS),
    result=st.none() | st.dictionaries(TEXT, JSON, max_size=4),
    error=st.none()
    | st.builds(
        EventError,
        type=TEXT.filter(bool),
        message=TEXT,
        retryable=st.booleans(),
        reserved=st.booleans(),
    ),
    retry_after_seconds=st.none() | SECONDS,
    checkpoint=st.none() | st.dictionaries(TEXT, JSON, max_size=4),
    deliveries=st.integers(0, 20),
    id=TEXT.filter(bool),
)

FIELDS = ["type", "subject", "data", "uid", "token", "attempt", "epoch"]


def envelope() -> dict[str, Any]:
    event = AttemptEvent(
        kind=EventKind.SUCCEEDED,
        namespace="shop",
        queue="images",
        task="resize-1",
        uid="0b1c",
        token="k1.abc",
        attempt=2,
        epoch=1,
        worker="pod-1",
        seconds=1.5,
    )
    parsed: dict[str, Any] = orjson.loads(encode(event))
    return parsed


def with_value(name: str, value: Any) -> bytes:
    changed = envelope()
    target = changed if name in changed else changed["data"]
    target[name] = value
    return orjson.dumps(changed)


def direct(**changes: Any) -> AttemptEvent:
    values: dict[str, Any] = {
        "kind": EventKind.SUCCEEDED,
        "namespace": "shop",
        "queue": "images",
        "task": "images",
        "uid": "",
        "token": "",
        "attempt": 2,
        "epoch": 0,
        "worker": "pod-1",
        "correlation_id": "order-7",
        "id": "m-1",
    }
    return AttemptEvent(**{**values, **changes})


def test_the_end_of_a_direct_message_has_its_ids_and_no_token() -> None:
    written = orjson.loads(encode(direct()))
    assert (written["id"], written["subject"]) == ("m-1", "shop/images")
    assert (written["data"]["token"], written["data"]["correlationId"]) == ("", "order-7")
    assert decode(encode(direct())) == direct()
    assert decode(encode(direct())).is_direct


def test_a_direct_message_without_ids_still_has_an_event_id_of_its_own() -> None:
    event = decode(encode(direct(correlation_id="", id="")))
    assert event.correlation_id == ""
    assert event.id


def test_a_tasks_event_says_nothing_of_a_correlation_id() -> None:
    assert "correlationId" not in envelope()["data"]
    assert not decode(orjson.dumps(envelope())).is_direct


@given(EVENTS)
def test_an_event_is_read_as_it_was_written(event: AttemptEvent) -> None:
    assume(event.kind is not EventKind.CHECKPOINT or event.checkpoint is not None)
    assert decode(encode(event)) == event


def test_the_envelope_is_a_cloud_event() -> None:
    written = envelope()
    assert written["specversion"] == "1.0"
    assert written["type"] == "dev.taskqueue.task.succeeded.v1"
    assert written["subject"] == "shop/resize-1"
    assert written["id"] != envelope()["id"]


def test_the_routing_key_names_queue_and_event() -> None:
    assert decode(orjson.dumps(envelope())).routing_key == "shop.images.task.succeeded"


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_refused(name: str) -> None:
    changed = envelope()
    (changed if name in changed else changed["data"]).pop(name)
    with pytest.raises(ContractError, match=name):
        decode(orjson.dumps(changed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "dev.taskqueue.task.vanished.v1"),
        ("type", 7),
        ("subject", None),
        ("data", "text"),
        ("attempt", "many"),
        ("attempt", 1e300),
        ("attempt", "9" * 30),
        ("epoch", -1e300),
        ("deliveries", 1e300),
        ("epoch", None),
        ("seconds", "long"),
        ("result", [1]),
        ("error", "boom"),
        ("retryAfterSeconds", {}),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ContractError):
        decode(with_value(name, value))


@given(st.sampled_from([*FIELDS, "taskqueue", "worker", "seconds", "result", "error"]), JSON)
def test_whatever_a_field_holds_nothing_else_is_raised(name: str, value: Any) -> None:
    with suppress(ContractError):
        decode(with_value(name, value))


@given(st.binary(max_size=200) | JSON.map(orjson.dumps))
def test_whatever_a_body_holds_nothing_else_is_raised(body: bytes) -> None:
    with pytest.raises(ContractError):
        decode(body)


@pytest.mark.parametrize(
    ("told", "taken"),
    [("nan", None), ("inf", None), (1e12, LONGEST_SECONDS), (-3, 0.0), (2.5, 2.5)],
)
def test_a_duration_is_taken_within_reason(told: object, taken: float | None) -> None:
    assert decode(with_value("seconds", told)).seconds == taken


def test_names_are_cut_to_what_a_status_holds() -> None:
    changed = envelope()
    changed["data"] |= {"worker": "w" * 999, "error": {"type": "E" * 999}}
    event = decode(orjson.dumps(changed))
    assert event.error is not None
    assert (len(event.worker), len(event.error.type)) == (OBJECT_NAME_LENGTH, OBJECT_NAME_LENGTH)


def failed(**error: Any) -> EventError | None:
    return decode(with_value("error", {"message": "m", **error})).error


def with_error(error: EventError) -> AttemptEvent:
    return replace(decode(orjson.dumps(envelope())), kind=EventKind.FAILED, error=error)


@pytest.mark.parametrize("name", ["UnknownHandler", "Timeout", "WorkerLost"])
def test_a_reserved_type_of_a_new_or_an_older_worker_is_not_an_applications(name: str) -> None:
    reserved = EventError(type=name, message="m", reserved=True)
    assert failed(type=f"taskqueue.{name}") == reserved
    assert failed(type=name) == reserved
    assert failed(type=name, application=True) == EventError(type=name, message="m")


@pytest.mark.parametrize("name", ["taskqueue.Timeout", "taskqueue.taskqueue.Timeout"])
def test_an_applications_error_is_not_reserved_whatever_it_is_called(name: str) -> None:
    assert failed(type=name, application=True) == EventError(type="Timeout", message="m")


@pytest.mark.parametrize("name", ["", "taskqueue."])
def test_a_type_that_says_nothing_is_an_error(name: str) -> None:
    error = failed(type=name)
    assert error is not None
    assert error.type == "Error"


@pytest.mark.parametrize("prefixed", [True, False])
def test_old_and_new_operators_read_a_reserved_type(prefixed: bool) -> None:
    error = EventError(type="Timeout", message="m", reserved=True)
    body = encode(with_error(error), prefixed=prefixed)
    sent = orjson.loads(body)["data"]["error"]
    assert sent == {
        "type": "taskqueue.Timeout" if prefixed else "Timeout",
        "message": "m",
        "retryable": True,
    }
    assert decode(body).error == error


@pytest.mark.parametrize("prefixed", [True, False])
def test_an_applications_error_is_marked_for_any_operator(prefixed: bool) -> None:
    error = EventError(type="Timeout", message="m")
    body = encode(with_error(error), prefixed=prefixed)
    sent = orjson.loads(body)["data"]["error"]
    assert (sent["type"], sent["application"]) == ("Timeout", True)
    assert decode(body).error == error


def test_a_long_error_message_is_cut_after_a_whole_character() -> None:
    error = decode(with_value("error", {"type": "E", "message": "x" + "é" * 5000})).error
    assert error is not None
    assert ERROR_MESSAGE_BYTES - 1 <= len(error.message.encode()) <= ERROR_MESSAGE_BYTES
    assert error.message.endswith("é…")


def test_the_largest_event_of_a_worker_is_within_the_limit() -> None:
    name = "é" * OBJECT_NAME_LENGTH
    error = EventError(type=name, message="x" * ERROR_MESSAGE_BYTES)
    event = AttemptEvent(
        kind=EventKind.FAILED,
        namespace=name,
        queue=name,
        task=name,
        uid=name,
        token=name,
        attempt=2**63 - 1,
        epoch=2**63 - 1,
        worker=name,
        seconds=LONGEST_SECONDS,
        error=error,
        id=name,
    )
    body = encode(event)
    assert len(body) < EVENT_BYTES
    assert decode(body) == event


def test_the_limit_of_an_event_leaves_out_what_has_its_own() -> None:
    large = {"a": "x" * EVENT_BYTES}
    assert decode(with_value("result", large)).result == large
    with pytest.raises(ContractError, match=f"data.checkpoint .*limit is {CHECKPOINT_BYTES}"):
        decode(with_value("checkpoint", large))
    with pytest.raises(ContractError, match="without its result or checkpoint"):
        decode(with_value("worker", "x" * EVENT_BYTES))


def test_what_an_error_quotes_is_cut() -> None:
    with pytest.raises(ContractError) as caught:
        decode(with_value("type", ["x" * EVENT_BYTES]))
    assert len(str(caught.value).encode()) <= DEAD_REASON_BYTES


REFERENCE = EventResultRef(size_bytes=7, content_type="image/png", sha256="0123abcd" * 8)
SUCCESS = AttemptEvent(
    kind=EventKind.SUCCEEDED,
    namespace="shop",
    queue="q",
    task="t",
    uid="u",
    token="k.1",
    attempt=1,
    epoch=0,
    worker="pod",
    result_ref=REFERENCE,
    id="e",
)


def test_what_is_in_a_store_is_said_of_a_success() -> None:
    assert decode(encode(SUCCESS)) == SUCCESS


@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind is not EventKind.SUCCEEDED])
def test_nothing_else_has_a_result_in_a_store(kind: EventKind) -> None:
    checkpoint: Any = {} if kind is EventKind.CHECKPOINT else None
    event = replace(SUCCESS, kind=kind, checkpoint=checkpoint)
    assert decode(encode(event)).result_ref is None


@given(
    name=st.sampled_from(["sizeBytes", "contentType", "sha256"]),
    value=JSON
    | st.sampled_from(
        [-1, STORED_RESULT_BYTES + 1, True, 1.5, "7", "image/png\n", "A" * 64, "0" * 63, "0" * 65]
    ),
)
def test_a_reference_is_read_as_it_is_or_refused(name: str, value: Any) -> None:
    body = orjson.loads(encode(SUCCESS))
    fields = body["data"]["resultRef"]
    fields[name] = value
    found = None
    with suppress(ContractError):
        found = decode(orjson.dumps(body)).result_ref
    if found is None:
        return
    assert [found.size_bytes, found.content_type, found.sha256] == [
        fields["sizeBytes"],
        fields["contentType"],
        fields["sha256"],
    ]
    assert type(found.size_bytes) is int
    assert 0 <= found.size_bytes <= STORED_RESULT_BYTES
    assert len(found.sha256) == 64
    assert found.content_type.isprintable()


@given(JSON)
def test_what_is_no_reference_is_refused(value: Any) -> None:
    assume(value is not None)
    body = orjson.loads(encode(SUCCESS))
    body["data"]["resultRef"] = value
    with pytest.raises(ContractError, match="data\\.resultRef"):
        decode(orjson.dumps(body))
