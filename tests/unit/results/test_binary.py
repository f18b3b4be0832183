"""Results that are bytes, and what is no media type."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue import BinaryResult
from taskqueue.limits import MEDIA_TYPE_LENGTH
from taskqueue.results.binary import OCTET_STREAM, binary_of, is_media_type


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_of_any_kind_are_a_binary_result(value: Any) -> None:
    assert binary_of(value) == BinaryResult(b"\x00\xff", OCTET_STREAM)


def test_a_binary_result_keeps_its_content_type() -> None:
    picture = BinaryResult(b"\x89PNG", "image/png")
    assert binary_of(picture) == picture


@pytest.mark.parametrize("value", [None, "text", {"a": b"1"}, [b"1"], 7, object()])
def test_nothing_else_is_one(value: Any) -> None:
    assert binary_of(value) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "png",
        "image/",
        "/png",
        "image/png\n",
        "image/png\nx",
        "text/plain; name=ä",
        "a b/c",
        "image/" + "x" * MEDIA_TYPE_LENGTH,
        7,
        None,
    ],
)
def test_what_is_no_media_type_is_refused_where_it_is_given(text: Any) -> None:
    assert not is_media_type(text)
    with pytest.raises(ValueError, match="content_type"):
        BinaryResult(b"", text)


@pytest.mark.parametrize(
    "text",
    ["image/png", "text/csv; charset=utf-8", 'image/png; what="a; b"', "application/vnd.a+json"],
)
def test_media_types_are_accepted(text: str) -> None:
    assert BinaryResult(b"", text).content_type == text


@given(st.text())
def test_a_media_type_fits_a_header_of_any_protocol(text: str) -> None:
    if is_media_type(text):
        assert text.isascii()
        assert text.isprintable()
        assert "\n" not in text


def test_a_body_that_is_not_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes, not str"):
        BinaryResult("text")  # type: ignore[arg-type]
