"""How a handler is called: found out when it is registered, or refused there.

A handler takes the payload first, by position, and the `Context` as its second parameter, or by the
keyword ``ctx`` or ``context``. What cannot be called so would fail at every attempt, so it is a
`TypeError` at import that names the handler and where it is defined.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

#: Names of the parameter that gets the context.
_CONTEXT = ("ctx", "context")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine; also of a callable object, and of partials of either."""
    function = _unwrapped(function)
    call = getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def context_argument(name: str, function: Callable[..., Any]) -> str | None:
    """Return how a handler gets the context: "" as second argument, else the keyword; None: not.

    Raises:
        TypeError: it cannot be called with a payload, or with a payload and a context.
    """
    signature = _signature(name, function)
    parameters = list(signature.parameters.values())
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [parameter for parameter in positional if parameter.default is parameter.empty]
    if not positional:
        raise _refused(name, function, f"it takes no payload by position: {signature}")
    if len(required) > 2:
        raise _refused(name, function, f"it takes more than (payload, ctx): {signature}")
    if positional[0].name in ("self", "cls") and len(required) == 2:
        raise _refused(name, function, "it is a method: register a bound one, of an object")
    second = positional[1] if len(positional) > 1 else None
    keywords = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    bound = function.keywords if isinstance(function, functools.partial) else {}
    by_keyword = [
        each.name for each in keywords if each.name in _CONTEXT and each.name not in bound
    ]
    unknown = [
        each.name for each in keywords if each.default is each.empty and each.name not in by_keyword
    ]
    if unknown:
        raise _refused(name, function, f"nobody gives it the keyword {unknown[0]!r}: {signature}")
    if second is not None and (second.default is second.empty or second.name in _CONTEXT):
        if by_keyword and second.default is second.empty and second.name not in _CONTEXT:
            raise _refused(name, function, f"two of its parameters are the context: {signature}")
        return ""
    return by_keyword[0] if by_keyword else None


def _signature(name: str, function: Callable[..., Any]) -> inspect.Signature:
    if inspect.isclass(function):
        raise _refused(name, function, "it is a class: register a function, or an object")
    plain = _unwrapped(function)
    calls = (plain, getattr(plain, "__call__", None))  # noqa: B004
    if any(map(inspect.isgeneratorfunction, calls)) or any(map(inspect.isasyncgenfunction, calls)):
        raise _refused(name, function, "it yields: return a result, and report with ctx.progress")
    try:
        return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise _refused(name, function, f"its parameters are not known: {error}") from None


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _refused(name: str, function: Callable[..., Any], why: str) -> TypeError:
    return TypeError(
        f"handler {name!r}{_place(function)} must take (payload) or (payload, ctx), and {why}"
    )


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(_unwrapped(function)), "__code__", None)
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"
