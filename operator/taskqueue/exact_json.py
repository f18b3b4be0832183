"""Encodes and decodes JSON without changing a value: what `taskqueue.jsonable` calls JSON.

orjson alone writes NaN as null and integers of 64 bits without sign, reads integers of more bits as
other numbers, and reads what is nested 1,024 deep while it writes 254 levels: what it has read
cannot be passed on. Here it does the work when a quick look at value and text rules all of that
out; else the value is walked.

All JSON is read here, and a test sees to it: `decode` reads what others wrote, `decode_own` what
this project wrote itself, or Kubernetes's API server.
"""

from __future__ import annotations

import json
import marshal
import re
from array import array
from itertools import accumulate
from typing import Any

import orjson

from taskqueue.jsonable import NotJsonError, plain
from taskqueue.limits import JSON_DEPTH

#: A version of marshal's format that does not look for objects that come twice: faster.
_PLAIN_MARSHAL = 2

#: Every integer that needs more than 64 bits with its sign has as many digits, or more.
_DIGITS = 19

#: Below the standard library's limit.
_REFUSED_LEVELS = 500

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LARGE = b"0" * _DIGITS

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
#: A string, which the end of the text may end, or a bracket elsewhere.
_MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
#: What brackets end with.
_ENDS = {b"[": b"]", b"{": b"}"}
#: What brackets do to the level, as signed bytes.
_UP, _DOWN = b"\x01", b"\xff"
_TO_STEPS = bytes.maketrans(b"[{]}", _UP + _UP + _DOWN + _DOWN)
#: Brackets looked at together: of text that is too deep not much more than its beginning.
_STEPS = 4096
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def encode(value: Any, at: str = "") -> bytes:
    """Return a value as JSON.

    Args:
        value: what `taskqueue.jsonable.plain` takes.
        at: the name of the value in an error's place, such as ``payload``.

    Raises:
        NotJsonError: it is not JSON.
    """
    if _is_builtin(value):
        try:
            text = orjson.dumps(value)
            if b"null" not in text and not _has_large_numbers(text):
                check_levels(text, at)
                return text
        except TypeError:
            pass  # `plain` knows where it is
    # A null may have been a NaN.
    return orjson.dumps(plain(value, at))


def _is_builtin(value: Any) -> bool:
    """Return whether a value has objects of built-in types only, of no subclass.

    orjson calls the code of others (enums, dataclasses, models), and crashes the process when the
    value is changed meanwhile, by that code or in another thread. marshal calls nobody.
    """
    try:
        marshal.dumps(value, _PLAIN_MARSHAL)
    except ValueError:
        return False
    return True


def decode(text: bytes | str, at: str = "", *, depth: int = JSON_DEPTH) -> Any:
    """Read JSON text.

    Args:
        text: of any length: check that before.
        at: the name of the value in an error's place, such as ``payload``.
        depth: levels of objects and lists it may have.

    Raises:
        NotJsonError: a value in it is no JSON for us, such as NaN or an integer of 65 bits.
        ValueError: it is not JSON at all.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    check_levels(data, at, depth=depth)
    problem = ""
    if not _has_large_numbers(data):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            problem = str(error)
    try:
        value = json.loads(data.decode(), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(problem or str(error)) from None
    return plain(value, at, depth=depth)


#: Reads JSON text that this project has written itself, or Kubernetes's API server. Raises
#: ValueError if it is not JSON, or deeper than orjson goes.
decode_own = orjson.loads


def decode_outline(text: bytes, levels: int) -> Any:
    """Read JSON text from Kubernetes's API server, or its upper levels if it goes too deep.

    Args:
        text: may be cut off: what is open there ends there, a number too.
        levels: of objects and lists to read then; null stands for what is nested deeper.

    Raises:
        ValueError: it is not JSON, or is cut off within a value of the upper levels.
    """
    try:
        return decode_own(text)
    except ValueError:
        return decode_own(_upper_levels(text, levels))


def _upper_levels(text: bytes, levels: int) -> bytes:
    kept: list[bytes] = []
    ends: list[bytes] = []
    begin = level = 0
    for found in _MARK.finditer(text):
        mark = found[0]
        if mark in _ENDS:
            level += 1
            if level <= levels:
                ends.append(_ENDS[mark])
            elif level == levels + 1:
                kept += text[begin : found.start()], b"null"
        elif mark in (b"]", b"}"):
            if level <= levels:
                del ends[-1:]
            elif level == levels + 1:
                begin = found.end()
            level -= 1
    if level <= levels:
        kept.append(text[begin:])
    return b"".join([*kept, *reversed(ends)])


def decode_refused(text: bytes) -> Any:
    """Read JSON text that `decode` refuses, to see whom it is from: numbers may be other ones.

    Raises:
        ValueError: it is not JSON either way, or far too deep.
    """
    check_levels(text, depth=_REFUSED_LEVELS)
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def split_list(text: bytes) -> list[bytes]:
    """Return the items of a list in JSON text, byte for byte as they are written.

    Each may still be what `decode` refuses: NaN, too deep, or not UTF-8.

    Raises:
        ValueError: it is not a list in JSON either way, or far too deep.
    """
    check_levels(text, depth=_REFUSED_LEVELS)
    # One character for each byte: what matters here is ASCII, and the places are the same.
    characters = text.decode("latin-1")
    items: list[bytes] = []
    at = _after_space(characters, 0)
    expected = "["
    while characters[at : at + 1] == expected:
        at = _after_space(characters, at + 1)
        if not items and characters[at : at + 1] == "]":
            break
        try:
            end = _DECODER.raw_decode(characters, at)[1]
        except RecursionError as error:
            raise ValueError(str(error)) from None
        items.append(text[at:end])
        at, expected = _after_space(characters, end), ","
    if characters[at : at + 1] != "]" or _after_space(characters, at + 1) != len(characters):
        raise ValueError("it is not a list")
    return items


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def check_levels(text: bytes, at: str = "", *, depth: int = JSON_DEPTH) -> None:
    """Refuse text with more levels of objects and lists, before anything parses it.

    Raises:
        NotJsonError: it has more.
        ValueError: it is not JSON at all.
    """
    if text.count(b"[") + text.count(b"{") <= depth:
        return
    steps = _outside_strings(text).translate(_TO_STEPS, _NOT_BRACKETS)
    if 2 * steps.count(_UP) != len(steps):
        raise ValueError("its brackets do not match")
    level = 0
    for begin in range(0, len(steps), _STEPS):
        levels = list(accumulate(array("b", steps[begin : begin + _STEPS]), initial=level))
        if max(levels) > depth:
            raise NotJsonError(f"nested deeper than {depth} levels: flatten it", at=at)
        level = levels[-1]


def _outside_strings(text: bytes) -> bytes:
    if b"\\" in text:
        return _STRING.sub(b"", text)
    return b"".join(text.split(b'"')[::2])


def _has_large_numbers(text: bytes) -> bool:
    """Return whether an integer may need more than 64 bits; a text of digits looks the same."""
    return len(text) >= _DIGITS and _LARGE in text.translate(_DIGITS_TO_ZERO)


def _integer(digits: str) -> int:
    """Return the number, or another one that is too large as well: Python does not read any."""
    return int(digits[: 2 * _DIGITS])


#: Finds where a value ends; neither numbers nor characters of strings are looked at.
_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=str, strict=False)
