"""Ends of handlers, as Python expressions: a child process gets the text and evaluates it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from taskqueue import Fail, Retry


class Hostile:
    """Whatever is asked of it fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@dataclasses.dataclass
class Record:
    value: Any


class Colour(enum.Enum):
    RED = "red"


class OddlyNamed(Exception):
    """Its name is no name."""


OddlyNamed.__name__ = "é" * 300


def deep(depth: int, *, of: str = "list") -> Any:
    """Return containers within each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if of == "list" else {"a": value}
    return value


def within_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def numbers() -> Iterator[int]:
    yield 1


def throw(error: BaseException) -> Any:
    raise error


_ATOMS = st.one_of(
    st.sampled_from(
        [
            *(
                "None",
                "True",
                "0",
                "-1",
                "2**53+1",
                "2**63-1",
                "-2**63",
                "2**63",
                "2**64",
                "2**200",
            ),
            *("1.5", "float('nan')", "float('inf')", "-float('inf')", "1e308", "5e-324", "1j"),
            *("''", "'text'", "'\\ud800'", "'\\0'", "'x'*20_000", "'é'*9_000", "b'bytes'"),
            *("Hostile()", "Hostile", "object()", "print", "numbers()", "range(3)", "{1, 2}"),
            *("decimal.Decimal('1.5')", "datetime.datetime(2026, 1, 2)", "datetime.timedelta(1)"),
            *("uuid.UUID(int=1)", "Colour.RED", "Record(1)", "Record(Hostile())", "(1, 2)"),
            *("deep(99)", "deep(101)", "deep(252)", "deep(255)", "deep(2000)"),
            *("deep(254, of='dict')", "deep(1200, of='dict')", "within_itself()", "type"),
        ]
    ),
    st.integers().map(repr),
    st.floats().map(lambda number: f"float('{number!r}')"),
    st.text(max_size=6).map(repr),
)
VALUES = st.recursive(
    _ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.tuples(_ATOMS, inner).map(lambda pair: f"{{{pair[0]}: {pair[1]}}}")
        | inner.map(lambda part: f"{{'key': {part}}}")
        | inner.map(lambda part: f"Record({part})")
    ),
    max_leaves=4,
)
_ERRORS = [
    *("Fail", "Retry", "ValueError", "KeyError", "OSError", "UnicodeError", "HostileError"),
    *("OddlyNamed", "StopIteration", "StopAsyncIteration", "RecursionError", "MemoryError"),
    *("TimeoutError", "asyncio.TimeoutError", "asyncio.InvalidStateError"),
]
#: Those that are no errors to Python, and end whoever lets them through.
_EXITS = ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "asyncio.CancelledError"]
RAISES = st.one_of(
    st.builds("throw({}({}))".format, st.sampled_from(_ERRORS + _EXITS), _ATOMS),
    st.builds("throw(Retry({}, after={}))".format, _ATOMS, _ATOMS),
    st.builds("throw(Fail({}, type={}))".format, _ATOMS, _ATOMS),
    _ATOMS.map("throw(ExceptionGroup('many', [ValueError({})]))".format),
)
#: Some raise while they are made: `KeyError` of a dict in a set, and the like.
ENDS = VALUES | RAISES

_NAMES = {
    **{each.__name__: each for each in (Hostile, HostileError, Record, Colour, Fail, Retry)},
    **{each.__name__: each for each in (deep, within_itself, numbers, throw)},
    "OddlyNamed": OddlyNamed,
    **{each.__name__: each for each in (asyncio, datetime, decimal, uuid)},
}


def end(text: str) -> Any:
    """Return or raise what the expression says."""
    return eval(text, dict(_NAMES))  # noqa: S307 - written above
