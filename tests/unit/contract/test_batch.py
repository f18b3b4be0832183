"""A batch gives its events back byte for byte, whatever one of them is."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract import batch
from taskqueue.contract.names import ContractError
from taskqueue.limits import BATCH_BYTES, BATCH_EVENTS

ITEMS = st.lists(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
    min_size=1,
    max_size=5,
)
#: Events that `decode` refuses, each of which is one value.
BAD = [
    b'{"a": NaN}',
    b"-Infinity",
    b"9" * 5000,
    b"1e999999",
    b'"\xff, ] [ \xc3"',
    b'{"a":' * 400 + b"1" + b"}" * 400,
    rb'"\ud800 \" ] , \\"',
    b"7",
    b'"a\nb\x00"',
]


@given(ITEMS, st.sampled_from([b"", b" ", b"\n\t", b"\r "]))
def test_a_batch_is_split_where_it_was_joined(events: list[bytes], space: bytes) -> None:
    assert batch.split(batch.join(events)) == events
    spaced = space + b"[" + space + (space + b"," + space).join(events) + space + b"]" + space
    assert batch.split(spaced) == events


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_event_leaves_the_others_as_they_are(bad: bytes) -> None:
    events = [b'{"a": 1.50}', bad, b'{"b":"\xc3\xa9"}', bad]
    assert batch.split(batch.join(events)) == events


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b"{}",
        b'"[]"',
        b"[{}",
        b"[{},]",
        b"[,{}]",
        b"[{} {}]",
        b"[{}]]",
        b"[{}] x",
        b"[{]}",
        b"[{tru}]",
        b"[" * 100_000,
        b"[" * 501 + b"]" * 501,
        b"[1" + b" " * BATCH_BYTES + b"]",
        batch.join([b"1"] * (BATCH_EVENTS + 1)),
    ],
)
def test_what_is_no_batch_is_refused(body: bytes) -> None:
    with pytest.raises(ContractError, match="batch"):
        batch.split(body)


def test_as_many_events_as_there_may_be() -> None:
    assert len(batch.split(batch.join([b"1"] * BATCH_EVENTS))) == BATCH_EVENTS


@given(st.binary(max_size=30) | st.text('[]{},: "\\\\1n', max_size=30).map(str.encode))
def test_whatever_a_body_holds_nothing_else_is_raised(body: bytes) -> None:
    with suppress(ContractError):
        events = batch.split(body)
        assert all(event in body for event in events)


@given(ITEMS)
def test_the_size_of_a_batch_is_known_before(events: list[bytes]) -> None:
    size = sum(map(len, events))
    assert batch.joined_bytes(len(events), size) == len(batch.join(events))
