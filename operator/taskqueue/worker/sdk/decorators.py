"""The decorators of a user's module, and the registry they fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from taskqueue.worker.sdk.handlers import HandlerRegistry, Hook, checked_hook
from taskqueue.worker.sdk.signatures import is_async

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Hook)
R = TypeVar("R", bound=Callable[[str], str])

#: What ``@task`` fills and the worker command serves.
registry = HandlerRegistry()


@overload
def task(function: F, /) -> F: ...
@overload
def task(
    name: str | None = None,
    /,
    *,
    default: bool = False,
    thread: bool = False,
    memory_mib: int | None = None,
) -> Callable[[F], F]: ...
@overload
def task(
    *, name: str, default: bool = False, thread: bool = False, memory_mib: int | None = None
) -> Callable[[F], F]: ...
def task(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    default: bool = False,
    thread: bool = False,
    memory_mib: int | None = None,
) -> Any:
    """Register a handler: ``@task``, ``@task("name")`` or ``@task(name=..., default=True)``.

    The function stays what it was and can be called in tests. Without a name it is registered
    under its own.

    Args:
        function: the function itself, or the handler's name.
        name: the handler's name.
        default: it takes direct messages that name no handler.
        thread: run a sync handler in a thread of the worker instead of a child process: it starts
            sooner and shares state with others, but cannot be stopped from outside.
        memory_mib: kill an attempt that uses more MiB than this, in a child process only.

    Raises:
        TypeError: the function takes neither (payload) nor (payload, context).
        ValueError: the name, or the place of the default, is taken; or the arguments contradict
            each other.
    """
    if callable(function):
        registry.register(function)
        return function
    if function is not None and not isinstance(function, str):
        raise TypeError(f"@task takes a function or a name, not {function!r}")
    label = function or name

    def decorate(decorated: F) -> F:
        registry.register(
            decorated, name=label, default=default, thread=thread, memory_mib=memory_mib
        )
        return decorated

    return decorate


def on_start(hook: H) -> H:
    """Have every process that runs handlers call this before its first one.

    It takes nothing and is not async: open what must not be shared between processes here, such
    as a connection pool. While it raises, the worker is not ready: it is called again with growing
    pauses, in a new process where handlers run in child processes, and in the worker's own process
    for async handlers and those in threads. No attempt fails for it: one that waits for its process
    is given back, uncounted.

    Raises:
        TypeError: it is async, or needs arguments.
    """
    registry.start_hooks.append(checked_hook(hook, "@on_start"))
    return hook


def on_stop(hook: H) -> H:
    """Have every process that runs handlers call this at its orderly end; the last one first.

    A process that is killed calls nothing.

    Raises:
        TypeError: it is async, or needs arguments.
    """
    registry.stop_hooks.append(checked_hook(hook, "@on_stop"))
    return hook


def redact_output(function: R) -> R:
    """Have output that is kept (spec.results.output) pass through this function.

    It takes what an attempt has printed, as text, and returns what may be kept. It runs in a thread
    of the worker's own process. Output that it fails on is not kept.

    Raises:
        TypeError: it is async.
        ValueError: there is one already.
    """
    name = getattr(function, "__qualname__", repr(function))
    if is_async(function):
        raise TypeError(f"@redact_output: {name} is async: give a plain function")
    if registry.redactor is not None:
        raise ValueError(f"@redact_output: {name} is the second one: keep one")
    registry.redactor = function
    return function
