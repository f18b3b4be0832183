"""Headers and properties as anybody may send them, encoded here, with every mistake of a kind.

Everything is bytes: what an encoder would refuse to write is what is wanted. `PROPERTIES` are
flags and values as they stand in a content header; about half of them are as they should be.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

#: The properties of AMQP 0-9-1 and their flags, in the order of their values.
SHORT_STRINGS = {
    "content_type": 15,
    "content_encoding": 14,
    "correlation_id": 10,
    "reply_to": 9,
    "expiration": 8,
    "message_id": 7,
    "type": 5,
    "user_id": 4,
    "app_id": 3,
    "cluster_id": 2,
}
HEADERS, DELIVERY_MODE, PRIORITY, TIMESTAMP = 13, 12, 11, 6

#: A year that a calendar has ends here, in seconds since 1970.
_YEAR_9999 = 253_402_300_799


def short(text: bytes) -> bytes:
    """Return a short string."""
    return bytes((len(text[:255]),)) + text[:255]


def long_string(kind: bytes, text: bytes) -> bytes:
    """Return a value that begins with its length."""
    return kind + struct.pack(">I", len(text)) + text


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Return a table, without its type; a name may come twice."""
    inner = b"".join(short(name) + value for name, value in entries)
    return struct.pack(">I", len(inner)) + inner


def _packed(kind: str, form: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: kind.encode() + struct.pack(f">{form}", value))


def _whole(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.sampled_from([low, high, 0, 1]) | st.integers(low, high)


_TEXT = st.text(max_size=12).map(str.encode)
_FLOATS = st.floats(-1e9, 1e9, width=32)
_GOOD_LEAVES = st.one_of(
    _packed("t", "B", st.integers(0, 1)),
    _packed("b", "b", _whole(8, signed=True)),
    _packed("B", "B", _whole(8, signed=False)),
    _packed("s", "h", _whole(16, signed=True)),
    _packed("U", "h", _whole(16, signed=True)),
    _packed("u", "H", _whole(16, signed=False)),
    _packed("I", "i", _whole(32, signed=True)),
    _packed("i", "I", _whole(32, signed=False)),
    _packed("l", "q", _whole(64, signed=True)),
    _packed("L", "q", _whole(64, signed=True)),
    _packed("f", "f", _FLOATS),
    _packed("d", "d", _FLOATS),
    st.tuples(st.integers(0, 20), _whole(32, signed=True)).map(
        lambda parts: b"D" + struct.pack(">Bi", *parts)
    ),
    _TEXT.map(lambda text: long_string(b"S", text)),
    st.binary(max_size=12).map(lambda data: long_string(b"S", data)),
    st.binary(max_size=12).map(lambda data: long_string(b"x", data)),
    _packed("T", "Q", st.integers(0, _YEAR_9999)),
    st.just(b"V"),
)
_BAD_LEAVES = st.one_of(
    # Milliseconds, microseconds, and what no calendar has.
    _packed("T", "Q", st.integers(_YEAR_9999 + 1, 2**64 - 1)),
    _packed("f", "f", st.sampled_from([math.inf, -math.inf, math.nan])),
    _packed("d", "d", st.sampled_from([math.inf, -math.inf, math.nan])),
    st.just(b"D\xff\x7f\xff\xff\xff"),
    # Types that nobody knows, and types without their value.
    st.integers(0, 255).map(lambda kind: bytes((kind,))),
    # A length that is not the length.
    st.tuples(st.sampled_from([b"S", b"x", b"A", b"F"]), st.integers(0, 2**32 - 1)).map(
        lambda parts: parts[0] + struct.pack(">I", parts[1]) + b"text"
    ),
)


def nested(depth: int, kind: bytes) -> bytes:
    """Return tables, or arrays, within each other."""
    value = b"V"
    for _ in range(depth):
        value = long_string(kind, b"\x01a" + value if kind == b"F" else value)
    return value


def _containers(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    entries = st.lists(st.tuples(_TEXT, inner), max_size=3)
    return st.lists(inner, max_size=3).map(
        lambda values: long_string(b"A", b"".join(values))
    ) | entries.map(lambda pairs: b"F" + table(pairs))


GOOD_VALUES = st.recursive(_GOOD_LEAVES, _containers, max_leaves=6)
BAD_VALUES = st.one_of(
    _BAD_LEAVES,
    st.recursive(_GOOD_LEAVES | _BAD_LEAVES, _containers, max_leaves=6),
    st.builds(nested, st.integers(1, 600), st.sampled_from([b"F", b"A"])),
    st.sampled_from([1000, 60_000, 110_000, 130_000]).map(
        lambda size: long_string(b"S", b"x" * size)
    ),
)

#: Names: some that this project's messages have, so that their values meet the intake.
OUR_NAMES = (
    *(b"tq-version", b"tq-namespace", b"tq-queue", b"tq-task", b"tq-attempt", b"tq-max-attempts"),
    *(b"tq-epoch", b"tq-token", b"tq-max-deliveries", b"tq-timeout-seconds", b"tq-fence"),
    *(b"tq-error", b"tq-exchange", b"tq-cut", b"traceparent", b"tracestate"),
    *(b"x-delivery-count", b"x-death", b"x-last-death-reason", b"x-stream-offset"),
)
_GOOD_NAMES = st.sampled_from(OUR_NAMES) | _TEXT
_BAD_NAMES = _GOOD_NAMES | st.binary(max_size=255)

_GOOD_ENTRIES = st.lists(st.tuples(_GOOD_NAMES, GOOD_VALUES), max_size=4)
_BAD_ENTRIES = st.lists(st.tuples(_BAD_NAMES, GOOD_VALUES | BAD_VALUES), min_size=1, max_size=4)

Values = Mapping[int, bytes]


def encoded_properties(values: Values, *, more_flags: int = 0) -> bytes:
    """Return flags and values; ``values`` are encoded, by their flag."""
    flags = more_flags
    for flag in values:
        flags |= 1 << flag
    return struct.pack(">H", flags) + b"".join(
        values[flag] for flag in sorted(values, reverse=True)
    )


def _values(
    texts: st.SearchStrategy[bytes], entries: st.SearchStrategy[list[tuple[bytes, bytes]]]
) -> st.SearchStrategy[dict[int, bytes]]:
    return st.fixed_dictionaries(
        {},
        optional={
            **{flag: texts.map(short) for flag in SHORT_STRINGS.values()},
            HEADERS: entries.map(table),
            DELIVERY_MODE: st.integers(0, 255).map(lambda mode: bytes((mode,))),
            PRIORITY: st.integers(0, 255).map(lambda level: bytes((level,))),
            TIMESTAMP: _whole(64, signed=False).map(lambda at: struct.pack(">Q", at)),
        },
    )


GOOD_PROPERTY_VALUES = _values(_TEXT, _GOOD_ENTRIES)
BAD_PROPERTY_VALUES = _values(_TEXT | st.binary(max_size=255), _GOOD_ENTRIES | _BAD_ENTRIES)


@st.composite
def broken(draw: st.DrawFn, wholes: st.SearchStrategy[bytes]) -> bytes:
    """Return something with a few bytes changed, cut off, doubled or put in."""
    data = bytearray(draw(wholes))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from("cidr")):
            case "c":
                del data[at:]
            case "i":
                data[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "d":
                data[at:at] = data[at : at + draw(st.integers(1, 8))]
            case _:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


GOOD_PROPERTIES = GOOD_PROPERTY_VALUES.map(encoded_properties)
BAD_PROPERTIES = st.one_of(
    BAD_PROPERTY_VALUES.map(encoded_properties),
    st.builds(
        lambda values, flags: encoded_properties(values, more_flags=flags),
        GOOD_PROPERTY_VALUES,
        st.integers(0, 2**16 - 1),
    ),
    broken(GOOD_PROPERTIES).map(lambda data: data.ljust(2, b"\x00")),
)
