"""The SDK: what a user's module imports to become a worker's handler.

``from taskqueue import task, Context, Retry, Fail``. A handler is a plain function, sync or async,
that takes the payload (a dict) and, if it wants one, a `Context`. What it returns is the Task's
result; what it raises is a failed attempt, retried by the Task's policy. Only the standard library
is imported here: a user's tests and a worker's start pay nothing for it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[[], None]
H = TypeVar("H", bound=Hook)


class Retry(Exception):
    """Raised by a handler: this attempt failed, try again.

    Args:
        message: for people; it becomes the attempt's message in the Task's history.
        after: seconds until the next attempt; None: the Task's own back-off.

    Raises:
        ValueError: ``after`` is negative.
    """

    def __init__(
        self, message: str = "the handler asked for a retry", *, after: float | None = None
    ) -> None:
        if after is not None and not 0 <= after < float("inf"):
            raise ValueError(f"Retry(after={after}): give seconds, 0 or more")
        super().__init__(message)
        self.after = after


class Fail(Exception):
    """Raised by a handler: this Task has failed and another attempt cannot help.

    Args:
        message: for people.
        type: a CamelCase word for programs; it becomes the error's type.
    """

    def __init__(self, message: str = "the handler gave up", *, type: str = "Fail") -> None:
        super().__init__(message)
        self.type = type


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt says it is: percent from 0 to 100, or None, and a line for people."""

    percent: float | None
    message: str


class Context:
    """What a handler may know about the attempt it runs, and tell about it. Safe in any thread.

    Attributes:
        task: ``namespace/name`` of the Task; ``namespace/queue`` for a direct message.
        uid: the Task's uid, the same in every attempt; a direct message's correlation id.
        queue: name of the TaskQueue.
        attempt: 1-based.
        max_attempts: the last attempt has this number.
        timeout_seconds: the attempt is given up after this long.
        fence: of a Task with a concurrencyKey, else None: a number that grows with every dispatch
            of the key. Pass it to the storage you write to, and have it refuse a write with a lower
            one than it has seen: a worker that was cut off or stood still may write late.
        logger: a `logging` logger whose lines carry task, uid and attempt.
    """

    __slots__ = (
        "_cancelled",
        "_latest",
        "_logger",
        "attempt",
        "fence",
        "max_attempts",
        "queue",
        "task",
        "timeout_seconds",
        "uid",
    )

    def __init__(
        self,
        *,
        task: str,
        uid: str,
        queue: str,
        attempt: int,
        max_attempts: int,
        timeout_seconds: float,
        fence: int | None = None,
    ) -> None:
        self.task = task
        self.uid = uid
        self.queue = queue
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.timeout_seconds = timeout_seconds
        self.fence = fence
        self._latest: Progress | None = None
        self._cancelled = False
        self._logger: logging.LoggerAdapter[logging.Logger] | None = None

    def progress(self, percent: float | None = None, message: str = "") -> None:
        """Say how far the attempt is; the latest call counts, earlier ones may never be seen.

        Raises:
            ValueError: percent is outside 0 to 100.
        """
        if percent is not None and not 0 <= percent <= 100:
            raise ValueError(f"progress({percent}): percent goes from 0 to 100")
        self._latest = Progress(percent, message)
        self.logger.debug("task.progress %s %s", percent, message)

    @property
    def latest_progress(self) -> Progress | None:
        """The last progress told, or None."""
        return self._latest

    @property
    def cancelled(self) -> bool:
        """True once the attempt's result is no longer wanted.

        It was cancelled or suspended, has timed out, its worker stops, or, with a fence, the broker
        may give it to another worker.
        A sync handler cannot be stopped from outside; a long one looks here and returns.
        """
        return self._cancelled

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry this attempt's fields."""
        if self._logger is None:
            fields = {"task": self.task, "uid": self.uid, "attempt": self.attempt}
            self._logger = _AttemptLogger(logging.getLogger("taskqueue.handler"), fields)
        return self._logger


def mark_cancelled(context: Context) -> None:
    """Make ``context.cancelled`` true; for executors."""
    context._cancelled = True


class _AttemptLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the attempt's fields to every record, where `taskqueue.logs` finds them."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(kwargs.get("extra") or {})
        extra["fields"] = self.extra
        kwargs["extra"] = extra
        return msg, kwargs


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function: how to call it, and by which name messages ask for it.

    Attributes:
        name: what messages and Tasks call it.
        function: as it was decorated.
        is_async: whether it runs on the handlers' loop.
        wants_context: whether it takes a second argument.
        thread: a sync one is run in a thread of the worker, never in a child process.
        memory_mib: an attempt in a child process that uses more is killed; None: the worker's own
            limit, if it has one.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    wants_context: bool
    thread: bool = False
    memory_mib: int | None = None

    def __call__(self, payload: dict[str, Any], context: Context) -> Any:
        """Call the function; for an async one, return its coroutine."""
        return self.function(payload, context) if self.wants_context else self.function(payload)


class Registry(Mapping[str, Handler]):
    """The handlers of a process by name, and which one takes messages that name none.

    Attributes:
        start_hooks: called in every process that runs handlers, before its first one, in order.
        stop_hooks: called at the orderly end of such a process, the last one first.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._default: Handler | None = None
        self.start_hooks: list[Hook] = []
        self.stop_hooks: list[Hook] = []

    def register(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        default: bool = False,
        thread: bool = False,
        memory_mib: int | None = None,
    ) -> Handler:
        """Add a function.

        Raises:
            TypeError: it cannot be called with a payload, or with a payload and a context.
            ValueError: another function has this name, or is the default already; or ``thread``
                and ``memory_mib`` contradict each other or the function.
        """
        label = name or getattr(function, "__name__", "")
        if not label:
            raise ValueError(f"{function!r} has no name: use @task(name=...)")
        handler = Handler(
            name=label,
            function=function,
            is_async=_is_async(function),
            wants_context=_wants_context(label, function),
            thread=thread,
            memory_mib=memory_mib,
        )
        _check_place(handler)
        known = self._handlers.get(label)
        if known is not None and _origin(known.function) != _origin(function):
            raise ValueError(
                f"two handlers are called {label!r}: {_origin(known.function)} and "
                f"{_origin(function)}; give one of them another name with @task(name=...)"
            )
        if default and self._default is not None and self._default.name != label:
            raise ValueError(
                f"handlers {self._default.name!r} and {label!r} both say default=True: keep one"
            )
        self._handlers[label] = handler
        if default:
            self._default = handler
        return handler

    @property
    def default(self) -> Handler | None:
        """The handler marked as default, else the only one there is, else None."""
        if self._default is None and len(self._handlers) == 1:
            return next(iter(self._handlers.values()))
        return self._default

    def __getitem__(self, name: str) -> Handler:
        return self._handlers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


#: What ``@task`` fills and the worker command serves.
registry = Registry()


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
    as a connection pool. One that raises keeps the process from taking work.

    Raises:
        TypeError: it is async, or needs arguments.
    """
    registry.start_hooks.append(_checked(hook, "@on_start"))
    return hook


def on_stop(hook: H) -> H:
    """Have every process that runs handlers call this at its orderly end; the last one first.

    A process that is killed calls nothing.

    Raises:
        TypeError: it is async, or needs arguments.
    """
    registry.stop_hooks.append(_checked(hook, "@on_stop"))
    return hook


def _checked(hook: H, where: str) -> H:
    name = getattr(hook, "__qualname__", repr(hook))
    if _is_async(hook):
        raise TypeError(f"{where}: {name} is async, and no loop runs yet: give a plain function")
    try:
        inspect.signature(hook).bind()
    except TypeError as problem:
        raise TypeError(
            f"{where}: {name} is called without arguments, but takes {inspect.signature(hook)}"
        ) from problem
    return hook


def _check_place(handler: Handler) -> None:
    """Refuse arguments of ``@task`` that cannot both hold."""
    limit = handler.memory_mib
    if limit is not None and limit < 1:
        raise ValueError(f"handler {handler.name!r}: memory_mib={limit}: give MiB, 1 or more")
    if handler.is_async and handler.thread:
        raise ValueError(
            f"handler {handler.name!r} is async and runs on the handlers' loop: leave out thread"
        )
    if limit is not None and (handler.is_async or handler.thread):
        raise ValueError(
            f"handler {handler.name!r}: memory_mib limits a child process, and this handler runs "
            "in the worker's own: leave it out, or make it a sync handler without thread=True"
        )


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _wants_context(name: str, function: Callable[..., Any]) -> bool:
    """Tell whether a second argument is wanted: one without a default, or named as the context."""
    positional = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [parameter for parameter in positional if parameter.default is parameter.empty]
    if not positional or len(required) > 2:
        raise TypeError(
            f"handler {name!r} must take (payload) or (payload, ctx), "
            f"not {inspect.signature(function)}"
        )
    return len(required) == 2 or (len(positional) > 1 and positional[1].name in {"ctx", "context"})


def _origin(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', repr(function))}"
