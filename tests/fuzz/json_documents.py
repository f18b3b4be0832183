"""JSON documents with a part of them replaced, doubled, removed, renamed or wrapped.

A document is written here, byte by byte: duplicated keys, numbers that no type holds, texts that
are no Unicode, and whatever else an encoder would refuse.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.field_tables import broken


@dataclass(frozen=True)
class Raw:
    """A value that is written as it stands."""

    text: bytes


@dataclass(frozen=True)
class Pairs:
    """An object whose keys may come twice."""

    entries: tuple[tuple[str, Any], ...]


def written(value: Any) -> bytes:
    """Return a document as bytes."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return written(Pairs(tuple(value.items())))
    if isinstance(value, Pairs):
        entries = (json.dumps(key).encode() + b":" + written(one) for key, one in value.entries)
        return b"{" + b",".join(entries) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(written, value)) + b"]"
    return json.dumps(value).encode()


def _nested(depth: int, is_object: bool) -> Raw:
    begin, end = (b'{"a":', b"}") if is_object else (b"[", b"]")
    return Raw(begin * depth + b"1" + end * depth)


#: Numbers and texts at and beyond every bound that somebody may have drawn.
ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, "", " ", [], {}, [[]], [None], 0.5, -0.0]),
    st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 2**127]),
    st.sampled_from(
        [
            *(b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1e-400", b"1E5", b"01"),
            *(b"0x1", b".5", b"1.", b"+1", b"nul", b"'a'", b"9" * 400, b"1" * 5000),
            *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\\u0000"', b'"\x00"', b'"\\q"'),
        ]
    ).map(Raw),
    st.sampled_from(["1", "-1", "NaN", "1e9", "true", "2026-01-02T00:00:00Z", "..", "a/b", "a.b"]),
    st.sampled_from(["x" * 254, "é" * 200, "\U0001f600" * 100, "x" * 2000, "x" * 70_000]),
    st.text(max_size=8),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.builds(_nested, st.sampled_from([1, 20, 99, 101, 253, 255, 1100, 20_000]), st.booleans()),
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Return a copy with one thing changed somewhere within."""
    if isinstance(document, dict) and document and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(document)))
        inner = draw(changed(document[key]))
        match draw(st.sampled_from(["value", "value", "value", "gone", "twice", "name"])):
            case "gone":
                return {name: one for name, one in document.items() if name != key}
            case "twice":
                return Pairs((*document.items(), (key, inner)))
            case "name":
                return {**document, draw(st.text(max_size=6)): document[key]}
            case _:
                return {**document, key: inner}
    if isinstance(document, list) and document and draw(st.booleans()):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], draw(changed(document[at])), *document[at + 1 :]]
    match draw(st.sampled_from(["odd", "odd", "odd", "listed", "wrapped", "many"])):
        case "listed":
            return [document]
        case "wrapped":
            return {"value": document}
        case "many":
            return [document] * draw(st.sampled_from([2, 50, 300]))
        case _:
            return draw(ODD_VALUES)


@st.composite
def bodies(draw: st.DrawFn, document: Any) -> bytes:
    """Return a document as it is, changed, or no document any more."""
    for _ in range(draw(st.integers(0, 2))):
        if not isinstance(document, dict | list):
            break
        document = draw(changed(document))
    body = written(document)
    match draw(st.sampled_from(["whole"] * 6 + ["broken", "other"])):
        case "broken":
            return draw(broken(st.just(body)))
        case "other":
            return draw(
                st.sampled_from(
                    [b"", b"null", b"[]", b'"text"', b"\xef\xbb\xbf" + body, b"[" * 9000]
                )
                | st.binary(max_size=20)
            )
        case _:
            return body
