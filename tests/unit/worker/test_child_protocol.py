"""Frames between worker and child: whole ones, however the socket cuts them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.limits import STORED_RESULT_BYTES
from taskqueue.results.reference import StoredResult
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.child_protocol import (
    CHILD_FRAME_BYTES,
    RESULT,
    FrameReader,
    ProtocolError,
    decode_result,
    encode_result,
    frame,
)

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=6)


@given(FRAMES, st.lists(st.integers(1, 30)), st.booleans())
def test_frames_come_whole_and_in_order_however_they_are_cut(
    frames: list[tuple[int, bytes]], pieces: list[int], limited: bool
) -> None:
    data = b"".join(frame(kind, body) for kind, body in frames)
    reader = FrameReader(CHILD_FRAME_BYTES if limited else None)
    found: list[tuple[int, bytes]] = []
    begin = 0
    for size in (*pieces, len(data) + 1):
        found += reader.feed(data[begin : begin + size])
        begin += size
    assert found == frames


@given(st.binary(max_size=50), st.sampled_from(["image/png", 'a/b; c="d"', "application/json"]))
def test_a_result_comes_as_it_was(body: bytes, content_type: str) -> None:
    result = StoredResult(body, content_type)
    assert decode_result(encode_result(result)) == result


@given(st.binary(max_size=50))
def test_anything_else_is_a_result_or_no_frame_of_ours(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert encode_result(decode_result(body)) == body


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    def header(kind: int, length: int) -> bytes:
        return bytes([kind]) + length.to_bytes(4, "big")

    assert FrameReader(CHILD_FRAME_BYTES).feed(header(RESULT, STORED_RESULT_BYTES)) == []
    assert FrameReader(CHILD_FRAME_BYTES).feed(header(2, CHILD_FRAME_BYTES)) == []
    for kind, length in ((RESULT, STORED_RESULT_BYTES + 1000), (2, CHILD_FRAME_BYTES + 1)):
        with pytest.raises(ProtocolError, match=f"{length} bytes"):
            FrameReader(CHILD_FRAME_BYTES).feed(header(kind, length))


def test_a_long_frame_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each piece it would cost as much as all before it."""
    looks = 0

    class Header:
        size = child_protocol._HEADER.size

        def unpack_from(self, data: bytes, begin: int) -> tuple[int, int]:
            nonlocal looks
            looks += 1
            kind, length = real.unpack_from(data, begin)
            return kind, length

    real = child_protocol._HEADER
    data = frame(RESULT, bytes(8_000_000))
    monkeypatch.setattr(child_protocol, "_HEADER", Header())
    reader = FrameReader(CHILD_FRAME_BYTES)
    found = []
    for begin in range(0, len(data), 65_536):
        found += reader.feed(data[begin : begin + 65_536])
    assert [(kind, len(body)) for kind, body in found] == [(RESULT, 8_000_000)]
    assert looks == 2
