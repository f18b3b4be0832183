"""Which functions can be handlers, and what they get; the others are refused at import."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from taskqueue import Context
from taskqueue.worker.sdk import HandlerRegistry


class Service:
    def method(self, payload: Any) -> Any:
        return [payload]

    def method_with_context(self, payload: Any, ctx: Context) -> Any:
        return [payload, ctx]

    @classmethod
    def of_class(cls, payload: Any, *, ctx: Context) -> Any:
        return [payload, ctx]

    @staticmethod
    def static(payload: Any, ctx: Context) -> Any:
        return [payload, ctx]

    def __call__(self, payload: Any, *, context: Context) -> Any:
        return [payload, context]


def keyword(payload: Any, *, ctx: Context) -> Any:
    return [payload, ctx]


def keyword_context(payload: Any, *, context: Context | None = None) -> Any:
    return [payload, context]


def positional_only(payload: Any, ctx: Context, /) -> Any:
    return [payload, ctx]


def other_name(payload: Any, attempt: Context) -> Any:
    return [payload, attempt]


def default(payload: Any, ctx: Context | None = None) -> Any:
    return [payload, ctx]


def option(payload: Any, size: int = 3, *, fast: bool = False) -> Any:
    return [payload]


def option_and_keyword(payload: Any, size: int = 3, *, ctx: Context) -> Any:
    return [payload, ctx]


def more(payload: Any, *rest: Any, **options: Any) -> Any:
    assert not rest
    assert not options
    return [payload]


def more_and_keyword(payload: Any, *rest: Any, ctx: Context, **options: Any) -> Any:
    return [payload, ctx]


def payload_default(payload: Any = None) -> Any:
    return [payload]


def three(payload: Any, ctx: Context, size: int) -> Any:
    return [payload, ctx, size]


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return call


TAKEN: dict[str, tuple[Callable[..., Any], bool]] = {
    "keyword": (keyword, True),
    "keyword-context": (keyword_context, True),
    "positional-only": (positional_only, True),
    "other-name": (other_name, True),
    "default": (default, True),
    "option": (option, False),
    "option-and-keyword": (option_and_keyword, True),
    "more": (more, False),
    "more-and-keyword": (more_and_keyword, True),
    "payload-default": (payload_default, False),
    "lambda": (lambda payload: [payload], False),
    "lambda-with-context": (lambda payload, ctx: [payload, ctx], True),
    "method": (Service().method, False),
    "method-with-context": (Service().method_with_context, True),
    "class-method": (Service.of_class, True),
    "static-method": (Service.static, True),
    "object": (Service(), True),
    "partial": (functools.partial(three, size=3), True),
    "partial-of-partial": (functools.partial(functools.partial(three, size=3)), True),
    "partial-with-context": (functools.partial(keyword_context, context=None), False),
    "wrapped": (wrapped(keyword), True),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_handler_gets_what_it_takes(name: str) -> None:
    function, wants_context = TAKEN[name]
    handler = HandlerRegistry().register(function, name="f")
    ctx = Context(task="shop/a", uid="u", queue="q", attempt=2, max_attempts=3, timeout_seconds=30)
    given = handler({"a": 1}, ctx)
    assert given[0] == {"a": 1}
    assert (ctx in given) == wants_context


def nothing() -> None: ...


def only_keywords(*, payload: Any, ctx: Context) -> None: ...


def only_rest(*args: Any, **options: Any) -> None: ...


def unknown_keyword(payload: Any, *, session: Any) -> None: ...


def two_contexts(payload: Any, attempt: Context, *, ctx: Context) -> None: ...


def generator(payload: Any) -> Iterator[int]:
    yield 1


async def async_generator(payload: Any) -> AsyncIterator[int]:
    yield 1


class Yields:
    def __call__(self, payload: Any) -> Iterator[int]:
        yield 1


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (nothing, "it takes no payload by position"),
    "only-keywords": (only_keywords, "it takes no payload by position"),
    "only-rest": (only_rest, "it takes no payload by position"),
    "three": (three, "it takes more than"),
    "unknown-keyword": (unknown_keyword, "nobody gives it the keyword 'session'"),
    "two-contexts": (two_contexts, "two of its parameters are the context"),
    "generator": (generator, "it yields"),
    "async-generator": (async_generator, "it yields"),
    "partial-generator": (functools.partial(generator), "it yields"),
    "yielding-object": (Yields(), "it yields"),
    "unbound-method": (Service.method, "it is a method"),
    "class": (Service, "it is a class"),
    "unknown": (type, "it is a class"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_called_is_refused_with_handler_and_file(name: str) -> None:
    function, why = REFUSED[name]
    with pytest.raises(TypeError) as raised:
        HandlerRegistry().register(function, name="resize")
    assert "handler 'resize'" in str(raised.value)
    assert why in str(raised.value)
    if hasattr(function, "__code__"):
        assert f"({__file__}:" in str(raised.value)


async def test_an_async_handler_gets_its_keyword_too() -> None:
    async def handle(payload: Any, *, ctx: Context) -> Any:
        return ctx.attempt

    for function in (handle, functools.partial(handle)):
        handler = HandlerRegistry().register(function, name="f")
        assert handler.is_async
        ctx = Context(
            task="shop/a", uid="u", queue="q", attempt=2, max_attempts=3, timeout_seconds=30
        )
        assert await handler({}, ctx) == 2
