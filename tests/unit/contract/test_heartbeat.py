"""Heartbeats survive the wire, and what is not one is refused without any other exception."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.heartbeat import (
    CAPACITY_LIMIT,
    LIST_LIMIT,
    Heartbeat,
    RunningAttempt,
    decode,
    encode,
)
from taskqueue.contract.names import ContractError
from taskqueue.limits import (
    HANDLER_NAME_LENGTH,
    HEARTBEAT_BYTES,
    OBJECT_NAME_LENGTH,
    PROGRESS_MESSAGE_LENGTH,
)
from taskqueue.model.worker import WorkerState

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=6,
)
_PROGRESS = {"percent": st.none() | st.integers(0, 100), "message": TEXT}
#: With the attempt's number and epoch, and from a worker that does not say them.
RUNNING = st.builds(
    RunningAttempt,
    uid=NAMES,
    token=NAMES,
    attempt=st.integers(1, 2**31),
    epoch=st.integers(0, 2**31),
    **_PROGRESS,
) | st.builds(RunningAttempt, uid=NAMES, token=NAMES, **_PROGRESS)
BEATS = st.builds(
    Heartbeat,
    namespace=NAMES,
    queue=NAMES,
    pod=NAMES,
    node=st.just("") | NAMES,
    cpus=st.floats(0, CAPACITY_LIMIT),
    slots=st.integers(0, CAPACITY_LIMIT),
    handlers=st.lists(TEXT, max_size=4).map(tuple),
    running=st.lists(RUNNING, max_size=4).map(tuple),
    state=st.sampled_from(WorkerState),
    busy=st.none() | st.integers(0, CAPACITY_LIMIT),
)
BEAT = Heartbeat(
    namespace="shop",
    queue="images",
    pod="worker-1",
    node="node-7",
    cpus=3.5,
    slots=4,
    handlers=("fetch", "resize"),
    running=(
        RunningAttempt("uid-1", "k.1", 40, "resizing", attempt=2, epoch=1),
        RunningAttempt("uid-2", "k.2"),
    ),
    state=WorkerState.READY,
    busy=3,
)


def encoded(**changes: Any) -> bytes:
    """Return `BEAT` as it is on the wire, with fields of its data changed."""
    envelope = orjson.loads(encode(BEAT))
    envelope["data"] |= changes
    return orjson.dumps(envelope)


def encoded_without(field: str) -> bytes:
    envelope = orjson.loads(encode(BEAT))
    del envelope["data"][field]
    return orjson.dumps(envelope)


def running(**changes: Any) -> bytes:
    return encoded(running=[{"uid": "u", "token": "k.1", **changes}])


@given(BEATS)
def test_a_round_trip_changes_nothing(beat: Heartbeat) -> None:
    assert decode(encode(beat)) == beat


def test_the_wire_format() -> None:
    envelope = orjson.loads(encode(BEAT))
    assert envelope.pop("id")
    assert envelope == {
        "specversion": "1.0",
        "type": "dev.taskqueue.worker.heartbeat.v1",
        "source": "/workers/worker-1",
        "subject": "shop/images",
        "taskqueue": "images",
        "datacontenttype": "application/json",
        "data": {
            "pod": "worker-1",
            "node": "node-7",
            "cpus": 3.5,
            "slots": 4,
            "handlers": ["fetch", "resize"],
            "running": [
                {
                    "uid": "uid-1",
                    "token": "k.1",
                    "attempt": 2,
                    "epoch": 1,
                    "progress": {"percent": 40, "message": "resizing"},
                },
                {"uid": "uid-2", "token": "k.2"},
            ],
            "state": "ready",
            "busy": 3,
        },
    }
    assert BEAT.routing_key == "shop.images.worker.heartbeat"


def test_every_heartbeat_has_an_id_of_its_own() -> None:
    assert orjson.loads(encode(BEAT))["id"] != orjson.loads(encode(BEAT))["id"]


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ("x" * (PROGRESS_MESSAGE_LENGTH + 1), "x" * PROGRESS_MESSAGE_LENGTH),
        ("half a \ud83d", "half a ?"),
        (5, "5"),
    ],
    ids=["long", "no Unicode text", "no text"],
)
def test_no_handlers_words_keep_a_heartbeat_from_leaving(message: Any, wire: str) -> None:
    attempt = RunningAttempt("u", "k.1", 1, message)
    (read,) = decode(encode(replace(BEAT, running=(attempt,)))).running
    assert (read.percent, read.message) == (1, wire)


@pytest.mark.parametrize("letter", ["x", "ü", "\x00"], ids=["ASCII", "UTF-8", "escaped"])
def test_lists_are_cut_and_marked_so_that_a_heartbeat_has_256_kib_at_most(letter: str) -> None:
    name = letter * HANDLER_NAME_LENGTH
    attempt = RunningAttempt("u" * 253, "k" * 253, 40, letter * PROGRESS_MESSAGE_LENGTH)
    beat = replace(BEAT, handlers=(name,) * 5000, running=(attempt,) * 5000)
    body = encode(beat)
    assert len(body) <= HEARTBEAT_BYTES
    data = orjson.loads(body)["data"]
    assert (data["handlersCut"], data["runningCut"]) == (True, True)
    assert decode(body).handlers == beat.handlers[: len(data["handlers"])]
    assert len(data["running"]) > 20
    whole = orjson.loads(encode(BEAT))["data"]
    assert not whole.keys() & {"handlersCut", "runningCut"}


# What others send.


def test_a_worker_in_another_language_may_leave_out_what_it_does_not_know() -> None:
    for field in ("node", "cpus", "handlers", "running", "busy"):
        assert decode(encoded_without(field)) == decode(encoded(**{field: None}))
    envelope = orjson.loads(encode(BEAT))
    envelope["data"] = {"pod": "go-1", "slots": 2, "state": "draining"}
    beat = decode(orjson.dumps(envelope))
    assert (beat.node, beat.cpus, beat.handlers, beat.running) == ("", 0.0, (), ())
    assert (beat.slots, beat.state, beat.busy) == (2, WorkerState.DRAINING, None)


@pytest.mark.parametrize("field", ["pod", "slots", "state"])
def test_what_must_be_there_is_named(field: str) -> None:
    with pytest.raises(ContractError, match=f"not a heartbeat .*{field}"):
        decode(encoded_without(field))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "not a CloudEvent"),
        (b"[]", "not a CloudEvent"),
        (encode(BEAT).replace(b"worker.heartbeat", b"task.succeeded"), "event type must be"),
        (encoded(pod=""), "pod must be a string"),
        (encoded(pod=7), "pod must be a string"),
        (encoded(pod="p" * (OBJECT_NAME_LENGTH + 1)), "pod must be a string"),
        (encoded(state="asleep"), "asleep"),
        (encoded(slots="4"), "slots must be a number"),
        (encoded(slots=True), "slots must be a number"),
        (encoded(busy="one"), "busy must be a number"),
        (encoded(busy=False), "busy must be a number"),
        (encoded(cpus="nan"), "cpus must be a number"),
        (encoded(handlers="resize"), "handlers must be a list"),
        (encoded(running={}), "running must be a list"),
        (encoded(running=["uid-1"]), "not a heartbeat"),
        (running(uid=None), "uid must be a string"),
        (running(token="t" * (OBJECT_NAME_LENGTH + 1)), "token must be a string"),
        (running(progress="half"), "not a heartbeat"),
        (running(progress={"percent": "half"}), "not a heartbeat"),
    ],
)
def test_what_is_none_is_refused(body: bytes, match: str) -> None:
    with pytest.raises(ContractError, match=match):
        decode(body)


def test_figures_are_taken_within_reason() -> None:
    assert decode(encoded(slots=-1, cpus=-0.5)).slots == 0
    assert decode(encoded(slots=10**18)).slots == CAPACITY_LIMIT
    assert decode(encoded(cpus=1e300)).cpus == CAPACITY_LIMIT
    assert decode(encoded(slots=2.0)).slots == 2
    assert decode(encoded(busy=-1)).busy == 0
    assert decode(encoded(busy=10**18)).busy == CAPACITY_LIMIT
    for said, taken in ((-5, 0), (101, 100), (39.9, 39)):
        assert decode(running(progress={"percent": said})).running[0].percent == taken


def test_texts_and_lists_are_cut() -> None:
    beat = decode(
        encoded(
            node="n" * 300,
            handlers=["h" * 300] + ["h"] * LIST_LIMIT,
            running=[{"uid": "u", "token": "k.1"}] * (LIST_LIMIT + 1),
        )
    )
    assert len(beat.node) == len(beat.handlers[0]) == OBJECT_NAME_LENGTH
    assert len(beat.handlers) == len(beat.running) == LIST_LIMIT
    (attempt,) = decode(running(progress={"message": "m" * 3000})).running
    assert (attempt.percent, len(attempt.message)) == (None, PROGRESS_MESSAGE_LENGTH)


@given(st.sampled_from(sorted(orjson.loads(encode(BEAT))["data"])), JSON)
def test_no_field_raises_anything_else(field: str, value: Any) -> None:
    with suppress(ContractError):
        decode(encoded(**{field: value}))


@given(st.sampled_from(["uid", "token", "progress"]), JSON)
def test_nor_does_any_of_a_running_attempt(field: str, value: Any) -> None:
    with suppress(ContractError):
        decode(running(**{field: value}))


@given(st.binary(max_size=60) | JSON.map(orjson.dumps))
def test_nor_does_anything_else(body: bytes) -> None:
    with suppress(ContractError):
        decode(body)


def test_the_example_of_the_contract_is_one() -> None:
    text = Path(__file__).parents[3].joinpath("docs/reference/message-contract.md").read_text()
    example = text.partition("## Heartbeats")[2].partition("```json")[2].partition("```")[0]
    beat = decode(example.encode())
    assert encode(beat).partition(b'"type"')[2] == orjson.dumps(orjson.loads(example)).partition(
        b'"type"'
    )[2].replace(b'"cpus":4,', b'"cpus":4.0,')
    assert beat.running[0].percent == 40
