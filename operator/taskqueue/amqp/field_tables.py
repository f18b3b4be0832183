"""Decodes field tables, such as the headers of a message.

What RabbitMQ passes on is read as pika reads it, with three differences. Floating-point numbers
stay what they are: pika cuts them to whole ones, and fails over NaN and infinity. Names that are
not UTF-8 are an error: pika returns them as bytes. What is nested deeper than `DEPTH` is an error
too: pika reads as deep as Python's stack happens to permit, and a copy of the message is written
from another place of the stack.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pika.compat import long

#: Levels of tables and arrays, the table itself included.
DEPTH = 100

_LENGTH = struct.Struct(">I")
_INT = struct.Struct(">i")
_LONG_INT = struct.Struct(">q")
_DECIMAL = struct.Struct(">Bi")

#: Types of a fixed size.
_FIXED: dict[int, tuple[struct.Struct, Callable[[Any], Any]]] = {
    ord(kind): (struct.Struct(f">{form}"), convert)
    for kind, form, convert in (
        ("t", "?", bool),
        ("b", "b", int),
        ("B", "B", int),
        ("s", "h", int),
        ("U", "h", int),
        ("u", "H", int),
        ("I", "i", int),
        ("i", "I", int),
        ("l", "q", long),  # the type has it written as such again
        ("L", "q", long),
        ("f", "f", float),
        ("d", "d", float),
        ("T", "Q", lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    )
}


def read_short_string(data: bytes, at: int) -> tuple[str, int]:
    """Return a short string, and where it ends.

    Raises:
        UnicodeDecodeError: it is not UTF-8, as the protocol demands; pika returns bytes.
    """
    begin = at + 1
    end = begin + data[at]
    return data[begin:end].decode(), end


def read_table(data: bytes, at: int, depth: int = DEPTH) -> tuple[dict[str, Any], int]:
    """Return a table, and where it ends.

    Raises:
        ValueError, IndexError, struct.error, OverflowError, OSError: it cannot be read: it is cut
            off, nested deeper than ``depth``, or has a value that Python has not, such as a date
            beyond the year 9999.
    """
    if depth <= 0:
        raise ValueError(f"its tables are nested deeper than {DEPTH} levels")
    end = at + 4 + _LENGTH.unpack_from(data, at)[0]
    at += 4
    table: dict[str, Any] = {}
    while at < end:
        name, at = read_short_string(data, at)
        kind = data[at]
        # The usual ones first, without a call.
        if kind == 0x53:  # S, a long string
            begin = at + 5
            at = begin + _LENGTH.unpack_from(data, at + 1)[0]
            try:
                table[name] = data[begin:at].decode()
            except UnicodeDecodeError:
                table[name] = data[begin:at]
        elif kind == 0x49:  # I
            (table[name],) = _INT.unpack_from(data, at + 1)
            at += 5
        elif kind == 0x6C:  # l
            table[name] = long(*_LONG_INT.unpack_from(data, at + 1))
            at += 9
        else:
            table[name], at = _read_value(data, at, depth)
    return table, at


def _read_value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if fixed := _FIXED.get(kind):
        form, convert = fixed
        return convert(form.unpack_from(data, at)[0]), at + form.size
    if kind == 0x53:  # S, a long string
        return _read_text(data, at)
    if kind == 0x78:  # x, bytes
        return _read_bytes(data, at)
    if kind == 0x46:  # F, a table
        return read_table(data, at, depth - 1)
    if kind == 0x41:  # A, an array
        return _read_array(data, at, depth - 1)
    if kind == 0x44:  # D, a decimal
        places, digits = _DECIMAL.unpack_from(data, at)
        return Decimal(digits).scaleb(-places), at + _DECIMAL.size
    if kind == 0x56:  # V, nothing
        return None, at
    raise ValueError(f"nobody knows the type {chr(kind)!r}")


def _read_array(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    if depth <= 0:
        raise ValueError(f"its arrays are nested deeper than {DEPTH} levels")
    end = at + 4 + _LENGTH.unpack_from(data, at)[0]
    at += 4
    values: list[Any] = []
    while at < end:
        value, at = _read_value(data, at, depth)
        values.append(value)
    return values, at


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    begin = at + 4
    end = begin + _LENGTH.unpack_from(data, at)[0]
    return data[begin:end], end


def _read_text(data: bytes, at: int) -> tuple[str | bytes, int]:
    """Return a long string; bytes if it is not UTF-8, which the protocol permits."""
    text, end = _read_bytes(data, at)
    try:
        return text.decode(), end
    except UnicodeDecodeError:
        return text, end
