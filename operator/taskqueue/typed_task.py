"""``@task`` as programs import it: registers a handler, and gives it a typed ``submit``.

The decorated function stays what it was, with two attributes more. Only the standard library is
imported here, so that a worker starts fast; the client is imported by the first ``submit``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from taskqueue.worker import sdk
from taskqueue.worker.sdk.payloads import parser_for

if TYPE_CHECKING:
    import asyncio
    from typing import Unpack

    from taskqueue.client import AsyncTaskClient, AsyncTaskHandle, TaskClient, TaskHandle
    from taskqueue.client.spec import TaskOptions

    class SubmitOptions(TaskOptions, total=False):
        """What `TaskClient.submit` takes besides queue, handler and payload."""

        name: str | None
        generate_name: str | None
        namespace: str | None
        labels: Mapping[str, str] | None
        annotations: Mapping[str, str] | None


T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")

#: Names the TaskQueue that a worker serves: handlers submit to it by default.
_QUEUE_VARIABLE = "TASKQUEUE_QUEUE"


class TaskFunction(Protocol[T_contra, P, R_co]):
    """A decorated handler: the function itself, which can also be submitted."""

    def __call__(self, payload: T_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function."""

    def submit(
        self,
        payload: T_contra,
        /,
        *,
        queue: str | None = None,
        client: TaskClient | None = None,
        **more: Unpack[SubmitOptions],
    ) -> TaskHandle:
        """Create a Task that runs this handler with a payload.

        Args:
            payload: what the handler takes: its model, or a dict that matches it.
            queue: name of the TaskQueue; default: that of ``@task(queue=...)``, else its worker's.
            client: default: one that the process keeps until it ends.
            more: as of `taskqueue.client.TaskClient.submit`.

        Raises:
            InvalidPayload: the handler would not take it; nothing was created.
            TypeError: no queue is named, or the payload is no JSON object.
            taskqueue.client.ClientError: as of `taskqueue.client.TaskClient.submit`.
        """

    async def submit_async(
        self,
        payload: T_contra,
        /,
        *,
        queue: str | None = None,
        client: AsyncTaskClient | None = None,
        **more: Unpack[SubmitOptions],
    ) -> AsyncTaskHandle:
        """Do as `submit` does, on the running loop; the default client lives as long as that."""


@overload
def task(function: Callable[Concatenate[T, P], R], /) -> TaskFunction[T, P, R]: ...
@overload
def task(
    name: str | None = None,
    /,
    *,
    default: bool = False,
    thread: bool = False,
    memory_mib: int | None = None,
    queue: str | None = None,
) -> Callable[[Callable[Concatenate[T, P], R]], TaskFunction[T, P, R]]: ...
@overload
def task(
    *,
    name: str,
    default: bool = False,
    thread: bool = False,
    memory_mib: int | None = None,
    queue: str | None = None,
) -> Callable[[Callable[Concatenate[T, P], R]], TaskFunction[T, P, R]]: ...
def task(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    **more: Any,
) -> Any:
    """Register a handler: ``@task``, ``@task("name")`` or ``@task(name=..., default=True)``.

    The function stays what it was and can be called in tests. Without a name it is registered
    under its own. ``resize.submit(Resize(...))`` creates a Task for it, as does
    ``await resize.submit_async(Resize(...))``.

    Args:
        function: the function itself, or the handler's name.
        name: the handler's name.
        queue: name of the TaskQueue that ``submit`` uses.
        more: ``default=True``: it takes direct messages that name no handler; ``thread=True``: run
            a sync handler in a thread of the worker instead of a child process: it starts sooner
            and shares state with others, but cannot be stopped from outside; ``memory_mib``: kill
            an attempt that uses more MiB than this, in a child process only.

    Raises:
        TypeError: the function takes neither (payload) nor (payload, context).
        ValueError: the name, or the place of the default, is taken; or the arguments contradict
            each other.
    """
    if callable(function):
        return _submittable(sdk.task(function), None, None)
    label = function or name
    register = sdk.task(function, **more) if name is None else sdk.task(function, name=name, **more)  # type: ignore[call-overload]
    return lambda decorated: _submittable(register(decorated), label, queue)


def _submittable(function: Any, name: str | None, queue: str | None) -> Any:
    """Give a function its ``submit``, unless it has one, or takes no attributes."""
    if hasattr(function, "submit"):
        return function
    handler = name or function.__name__

    def submit(
        payload: Any,
        /,
        *,
        queue: str | None = queue,
        client: TaskClient | None = None,
        **more: Any,
    ) -> TaskHandle:
        checked = _checked(handler, function, payload)
        place = _queue_of(handler, queue)
        return (client or _client()).submit(place, handler, checked, **more)

    async def submit_async(
        payload: Any,
        /,
        *,
        queue: str | None = queue,
        client: AsyncTaskClient | None = None,
        **more: Any,
    ) -> AsyncTaskHandle:
        checked = _checked(handler, function, payload)
        place = _queue_of(handler, queue)
        return await (client or await _async_client()).submit(place, handler, checked, **more)

    with suppress(AttributeError):  # a bound method
        function.submit, function.submit_async = submit, submit_async
    return function


def _checked(handler: str, function: Callable[..., Any], payload: Any) -> dict[str, Any]:
    """Return a payload as JSON that the handler takes."""
    from taskqueue.client.spec import payload_object

    given = payload_object(payload)
    parser = parser_for(handler, function)
    if parser is not None:
        parser(given)
    return given


def _queue_of(handler: str, queue: str | None) -> str:
    found = queue or os.environ.get(_QUEUE_VARIABLE)
    if not found:
        raise TypeError(
            f"{handler}.submit() needs a TaskQueue: give queue=, or mark the handler with "
            "@task(queue=...)"
        )
    return found


_lock = threading.Lock()
#: By process: a client does not survive a fork.
_clients: dict[int, TaskClient] = {}


def _client() -> TaskClient:
    from taskqueue.client import TaskClient

    with _lock:
        return _clients.get(os.getpid()) or _clients.setdefault(os.getpid(), TaskClient())


#: By loop; each closes its client when the loop shuts down.
_keepers: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Any, AsyncTaskClient]] = (
    WeakKeyDictionary()
)


async def _async_client() -> AsyncTaskClient:
    import asyncio  # not for a handler's module: most never submit

    loop = asyncio.get_running_loop()
    found = _keepers.get(loop)
    if found is None:
        keeper = _kept_client()
        # Set before the first await: two that submit at once share it.
        client = cast("AsyncTaskClient", await anext(keeper))
        found = _keepers.setdefault(loop, (keeper, client))
    return found[1]


async def _kept_client() -> AsyncGenerator[AsyncTaskClient, None]:
    """Yield a client that lives until the loop shuts down its generators."""
    from taskqueue.client import AsyncTaskClient

    async with AsyncTaskClient() as client:
        yield client
