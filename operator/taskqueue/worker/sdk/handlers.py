"""The registered handlers of a process, and how to call each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from taskqueue.worker.sdk.context import Context
from taskqueue.worker.sdk.payloads import PayloadParser, parser_for
from taskqueue.worker.sdk.signatures import context_argument, is_async

Hook = Callable[[], None]
H = TypeVar("H", bound=Hook)


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function: its name in messages, and how to call it.

    Attributes:
        name: as Tasks and messages name it.
        function: as it was decorated.
        is_async: whether it runs on the handlers' loop.
        context: how it gets the `Context`: "" as second argument, else the keyword; None: not.
        thread: a sync one is run in a thread of the worker, never in a child process.
        memory_mib: an attempt in a child process that uses more is killed; None: the worker's own
            limit, if it has one.
        parser: makes the model its first parameter asks for; None: it takes the dict.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    context: str | None
    thread: bool = False
    memory_mib: int | None = None
    parser: PayloadParser | None = field(default=None, repr=False, compare=False)

    def __call__(self, payload: dict[str, Any], context: Context) -> Any:
        """Call the function; for an async one, return its coroutine.

        Raises:
            InvalidPayload: the payload is not the model the function asks for.
        """
        given: Any = payload if self.parser is None else self.parser(payload)
        if self.context is None:
            return self.function(given)
        if self.context:
            return self.function(given, **{self.context: context})
        return self.function(given, context)


class HandlerRegistry(Mapping[str, Handler]):
    """Holds the handlers of a process by name, and the one for messages that name none.

    Attributes:
        start_hooks: called in every process that runs handlers, before its first one, in order.
        stop_hooks: called at the orderly end of such a process, the last one first.
        redactor: removes what nobody must read from output that is kept; None: there is none.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._default: Handler | None = None
        self.start_hooks: list[Hook] = []
        self.stop_hooks: list[Hook] = []
        self.redactor: Callable[[str], str] | None = None

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
            is_async=is_async(function),
            context=context_argument(label, function),
            thread=thread,
            memory_mib=memory_mib,
            parser=parser_for(label, function),
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

    def prepare(self) -> None:
        """Prepare what handlers need before their first call, such as their models.

        Called at the start of a process, before it forks. Otherwise the first attempt would pay
        for it, and the first message would reveal a mistake.

        Raises:
            TypeError: the annotation of a handler's payload cannot be used.
        """
        for handler in self._handlers.values():
            if handler.parser is not None:
                handler.parser.prepare()

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


def checked_hook(hook: H, where: str) -> H:
    """Return a hook that can be called without arguments.

    Raises:
        TypeError: it cannot, or it is async.
    """
    name = getattr(hook, "__qualname__", repr(hook))
    if is_async(hook):
        raise TypeError(f"{where}: {name} is async, and no loop runs yet: give a plain function")
    try:
        inspect.signature(hook).bind()
    except TypeError as error:
        raise TypeError(
            f"{where}: {name} is called without arguments, but takes {inspect.signature(hook)}"
        ) from error
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


def _origin(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', repr(function))}"
