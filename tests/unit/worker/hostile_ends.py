"""Ends of handlers that are hard to report: each is a function that a handler returns or calls."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

import pydantic

from taskqueue import Cancelled, Fail, Retry, Snooze
from taskqueue.contract.outcome import EventKind, decode
from taskqueue.limits import ERROR_MESSAGE_BYTES, LONGEST_RETRY_SECONDS, STATUS_REASON_LENGTH
from taskqueue.worker.attempt_events import event_of, kind_of
from taskqueue.worker.executor import AttemptResult
from tests.unit.worker.fakes import work


class TextFails(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class TextExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class TextIsNoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class EvilText(str):
    __slots__ = ()

    def encode(self, *_: Any) -> NoReturn:
        raise KeyboardInterrupt

    def __getitem__(self, _: Any) -> NoReturn:
        raise KeyboardInterrupt

    def __len__(self) -> NoReturn:
        raise KeyboardInterrupt


class TextIsEvil(Exception):
    def __str__(self) -> str:
        return EvilText("evil")


class UnformattableText(str):
    __slots__ = ()

    def __format__(self, _: str) -> NoReturn:
        raise KeyboardInterrupt


class TextIsUnformattable(Exception):
    def __str__(self) -> str:
        return UnformattableText("not to be formatted")


class ClasslessType(type):
    def __getattribute__(cls, name: str) -> NoReturn:
        raise RuntimeError(f"no {name}")


class Classless(metaclass=ClasslessType):
    """A value whose class cannot be asked for anything."""


class Liar:
    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise SystemExit(10)


class FailTypeLies(Fail):
    @property
    def type(self) -> Any:
        return Liar()

    @type.setter
    def type(self, _: str) -> None:
        """Take it, and never give it back."""


class NamelessType(type):
    @property
    def __name__(cls) -> NoReturn:  # type: ignore[override]
        raise SystemExit(4)


class Nameless(Exception, metaclass=NamelessType):
    pass


class ClassFails(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no class")


class TracebackFails(Exception):
    @property
    def __traceback__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no traceback")


class NotesFail(Exception):
    @property
    def __notes__(self) -> NoReturn:  # type: ignore[override]
        raise SystemExit(5)


class BareFail(Fail):
    def __init__(self) -> None:
        """Does not call the base class."""


class BareSnooze(Snooze):
    def __init__(self) -> None:
        pass


class BareRetry(Retry):
    def __init__(self) -> None:
        """Does not call the base class."""


class FailTypeFails(Fail):
    @property
    def type(self) -> NoReturn:
        raise SystemExit(6)

    @type.setter
    def type(self, _: str) -> None:
        """Take it, and never give it back."""


class RetryAfterFails(Retry):
    @property
    def after(self) -> NoReturn:
        raise SystemExit(7)

    @after.setter
    def after(self, _: float | None) -> None:
        """Take it, and never give it back."""


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot be pickled")


def changed(error: BaseException, **attributes: Any) -> BaseException:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def cycle() -> Exception:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    return first


def nested_groups(depth: int) -> BaseException:
    error: BaseException = Fail("deep", type="Deep")
    for _ in range(depth):
        error = BaseExceptionGroup("level", [error])
    return error


@dataclasses.dataclass
class FieldMissing:
    size: int

    def __post_init__(self) -> None:
        del self.size


class ModelFails(pydantic.BaseModel):
    size: int = 1

    @pydantic.field_serializer("size")
    def _fail(self, _: int) -> int:
        raise ZeroDivisionError


class ModelExits(pydantic.BaseModel):
    size: int = 1

    @pydantic.field_serializer("size")
    def _exit(self, _: int) -> int:
        raise SystemExit(8)


class ModelRaisesText(pydantic.BaseModel):
    size: int = 1

    @pydantic.field_serializer("size")
    def _raise(self, _: int) -> int:
        raise TextIsUnformattable


@dataclasses.dataclass
class FieldRaisesText:
    size: int = 1

    def __getattribute__(self, name: str) -> Any:
        raise TextIsUnformattable


class EvilDict(dict[str, Any]):
    def items(self) -> NoReturn:
        raise SystemExit(9)

    __iter__ = keys = values = items


class Colour(enum.Enum):
    RED = object()


async def coroutine() -> None:
    """Awaited by nobody."""


def within_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


#: What handlers raise.
RAISED: dict[str, Callable[[], BaseException]] = {
    "retry-decimal": lambda: Retry("slow", after=Decimal("5")),
    "retry-fraction": lambda: Retry("slow", after=Fraction(1, 3)),
    "retry-huge": lambda: Retry("slow", after=1e300),
    "retry-of-error": lambda: Retry(ValueError("inner")),
    "retry-later-decimal": lambda: changed(Retry(), after=Decimal("5")),
    "retry-later-nan": lambda: changed(Retry(), after=float("nan")),
    "retry-later-text": lambda: changed(Retry(), after="soon"),
    "retry-later-huge": lambda: changed(Retry(), after=10**400),
    "retry-bare": BareRetry,
    "retry-after-fails": lambda: RetryAfterFails(after=3),
    "snooze": lambda: Snooze(Decimal("2.5")),
    "snooze-later-nan": lambda: changed(Snooze(1), seconds=float("nan")),
    "snooze-later-text": lambda: changed(Snooze(1), seconds="soon"),
    "snooze-later-huge": lambda: changed(Snooze(1), seconds=10**400),
    "snooze-bare": BareSnooze,
    "fail-later-number": lambda: changed(Fail("bad"), type=404),
    "fail-later-empty": lambda: changed(Fail("bad"), type=""),
    "fail-long-type": lambda: Fail("bad", type="X" * 100_000),
    "fail-surrogate": lambda: Fail("\ud800", type="\udfff"),
    "fail-bare": BareFail,
    "fail-type-fails": lambda: FailTypeFails("bad"),
    "fail-type-lies": lambda: FailTypeLies("bad"),
    "text-fails": TextFails,
    "text-exits": TextExits,
    "text-is-no-text": TextIsNoText,
    "text-is-evil": TextIsEvil,
    "text-is-unformattable": TextIsUnformattable,
    "text-of-a-mebibyte": lambda: ValueError("x" * 2**20),
    "surrogates": lambda: ValueError("\ud800\udfff" * 700),
    "zeros": lambda: ValueError("\0\x01\x1b[31m"),
    "nameless": Nameless,
    "long-name": lambda: type("N" * 100_000, (Exception,), {})(),
    "surrogate-name": lambda: type("N\udcff", (Exception,), {})(),
    "class-fails": ClassFails,
    "traceback-fails": TracebackFails,
    "notes-fail": NotesFail,
    "unpicklable": Unpicklable,
    "cycle": cycle,
    "exit": lambda: SystemExit(3),
    "exit-with-object": lambda: SystemExit(object()),
    "interrupt": KeyboardInterrupt,
    "generator-exit": GeneratorExit,
    "stop-iteration": lambda: StopIteration(3),
    "stop-async-iteration": StopAsyncIteration,
    "cancelled-error": asyncio.CancelledError,
    "cancelled": Cancelled,
    "timeout": TimeoutError,
    "memory": MemoryError,
    "recursion": RecursionError,
    "group": lambda: ExceptionGroup("two", [TextFails(), Fail("bad")]),
    "group-of-base": lambda: BaseExceptionGroup("two", [SystemExit(1), KeyboardInterrupt()]),
    "group-of-many": lambda: ExceptionGroup("many", [ValueError(n) for n in range(10_000)]),
    "groups": lambda: nested_groups(10),
    "groups-deep": lambda: nested_groups(500),
}


@dataclasses.dataclass
class Measured:
    loss: float


#: What handlers return.
RETURNED: dict[str, Callable[[], Any]] = {
    "field-missing": lambda: FieldMissing(1),
    "model-fails": ModelFails,
    "model-exits": ModelExits,
    "model-raises-text": ModelRaisesText,
    "field-raises-text": FieldRaisesText,
    "classless": Classless,
    "liar": Liar,
    "evil-dict": lambda: EvilDict(a=1),
    "evil-text": lambda: {"a": EvilText("evil")},
    "enum": lambda: Colour.RED,
    "coroutine": coroutine,
    "generator": lambda: (n for n in range(3)),
    "error": lambda: TextFails(),
    "decimal": lambda: Decimal(5),
    "complex": lambda: 1j,
    "bytes": lambda: b"\xff",
    "surrogate": lambda: "\ud800",
    "surrogate-key": lambda: {"\ud800": 1},
    "number-key": lambda: {1: 1},
    "wide-integer": lambda: 2**200,
    "unsigned-integer": lambda: {"items": [{"loss": 2**64 - 1}]},
    "integer-of-64-bits": lambda: 2**63,
    "not-a-number": lambda: {"items": [{"loss": float("nan")}]},
    "endless": lambda: [float("-inf")],
    "not-a-number-in-a-model": lambda: Measured(float("nan")),
    "within-itself": within_itself,
    "deep": lambda: deep(10_000),
    "deep-at-orjsons-limit": lambda: deep(253),
    "deep-below-orjsons-limit": lambda: deep(251),
    "large": lambda: "x" * 2**20,
    "type": lambda: int,
}


def end_of(name: str) -> Any:
    """Return or raise what is called so; the body of a handler."""
    kind, _, name = name.partition(":")
    if kind == "returns":
        return RETURNED[name]()
    raise RAISED[name]()


NAMES = [f"raises:{name}" for name in RAISED] + [f"returns:{name}" for name in RETURNED]


def assert_published(result: AttemptResult) -> None:
    """Encode the outcome as the worker does, and read it as the operator does."""
    assert not result.lost
    event = decode(event_of(work(), kind_of(result), worker="w", result=result).body)
    assert event.kind in {EventKind.SUCCEEDED, EventKind.FAILED, EventKind.SNOOZED}
    if event.error is not None:
        assert 0 < len(event.error.type) <= STATUS_REASON_LENGTH
        assert len(event.error.message.encode()) <= ERROR_MESSAGE_BYTES
        (event.error.type + event.error.message).encode()
    wait = event.retry_after_seconds
    assert wait is None or 0 <= wait <= LONGEST_RETRY_SECONDS
    str(result.exception).encode()  # as the log writes it


#: What a service answers, or a program writes as its result.
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep-at-the-limit": b'{"a":' + b"[" * 253 + b"]" * 253 + b"}",
    "surrogate": b'{"a":"\\ud800"}',
    "no-utf-8": b'{"a":"\xff"}',
    "wide-integer": b'{"a":' + b"9" * 400 + b"}",
    "no-json-number": b'{"a":NaN}',
    "wide-float": b'{"a":1e999}',
    "zero": b'{"a":"\\u0000"}\0',
    "repeated-key": b'{"a":1,"a":2}',
    "large": b'{"a":"' + b"x" * 2**21 + b'"}',
    "list": b"[1]",
    "open": b'{"a":',
}
