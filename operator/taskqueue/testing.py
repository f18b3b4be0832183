"""Run a handler in a test as a worker would, without worker, broker or cluster.

``run(handler, {"name": "Ada"})`` checks the payload against the handler's annotation, gives it a
`taskqueue.Context`, and returns what the Task's result would be. What the handler raises is raised.
Time-outs and kills are not simulated: the test runner has to stop a test that hangs. Only the
standard library is used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict, Unpack

from taskqueue.defaults import DEFAULT_ATTEMPT_SECONDS, DEFAULT_ATTEMPTS
from taskqueue.jsonable import plain
from taskqueue.limits import RESULT_BYTES, STORED_RESULT_BYTES
from taskqueue.results.binary import NEEDS_STORE, BinaryResult, binary_of
from taskqueue.worker.sdk import Context, Fail, Handler, HandlerRegistry, Progress
from taskqueue.worker.sdk.checkpoints import decode_checkpoint, encode_checkpoint

__all__ = ["About", "Recorded", "run", "run_async"]


class About(TypedDict, total=False):
    """Values for the handler's `Context`, by its own names; what is left out has a default.

    The first of 3 attempts of Task ``test/task`` in queue ``test``, which may take 300 s, without
    a fence, a checkpoint, a scheduled time and an index.
    """

    task: str
    uid: str
    queue: str
    attempt: int
    max_attempts: int
    timeout_seconds: float
    fence: int | None
    last_checkpoint: Any
    scheduled_time: datetime | None
    index: int | None


_DEFAULTS: About = {
    "task": "test/task",
    "uid": "00000000-0000-4000-8000-000000000000",
    "queue": "test",
    "attempt": 1,
    "max_attempts": DEFAULT_ATTEMPTS,
    "timeout_seconds": DEFAULT_ATTEMPT_SECONDS,
    "fence": None,
    "last_checkpoint": None,
    "scheduled_time": None,
    "index": None,
}


@dataclass(slots=True)
class Recorded:
    """Records what a handler reported while it ran.

    Attributes:
        progress: every progress report, oldest first; a Task shows the latest only.
        checkpoints: every value saved with ``ctx.checkpoint``, oldest first.
    """

    progress: list[Progress] = field(default_factory=list)
    checkpoints: list[Any] = field(default_factory=list)


def run(
    handler: Callable[..., Any],
    payload: Any = None,
    *,
    cancelled: bool | Callable[[], bool] = False,
    recorded: Recorded | None = None,
    store: bool = False,
    **about: Unpack[About],
) -> Any:
    """Run a handler, sync or async, and return what the Task's result would be.

    Args:
        handler: the function, decorated or not.
        payload: a dict, or a model or dataclass, which becomes JSON as on its way to a worker;
            None: an empty object.
        cancelled: the value of ``ctx.cancelled``, or a function that is called for it each time.
        recorded: records what the handler reports.
        store: whether the TaskQueue has a store (spec.results.store), which keeps results of more
            than 16 KiB and `BinaryResult`.
        about: values of the context: ``attempt=3``, ``max_attempts``, ``timeout_seconds``,
            ``fence``, ``uid``, ``task``, ``queue``, ``last_checkpoint``, ``scheduled_time``,
            ``index``.

    Raises:
        TypeError: the payload is not a JSON object, the function cannot be a handler, or its
            annotation cannot be used.
        InvalidPayload: the payload is not what the handler's annotation asks for.
        Fail: as the handler raised it; or with type InvalidResult or ResultTooLarge, where a worker
            would refuse what it returned.
        RuntimeError: the handler is async, and a loop runs already: use `run_async`.
    """
    registered = _registered(handler)
    context = _Context(cancelled, recorded or Recorded(), about)
    if not registered.is_async:
        return _result(registered(_object(payload), context), store=store)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_run(registered, payload, context, store=store))
    raise RuntimeError(
        f"handler {registered.name!r} is async, and a loop runs in this thread already: "
        "await taskqueue.testing.run_async(...)"
    )


async def run_async(
    handler: Callable[..., Any],
    payload: Any = None,
    *,
    cancelled: bool | Callable[[], bool] = False,
    recorded: Recorded | None = None,
    store: bool = False,
    **about: Unpack[About],
) -> Any:
    """Run a handler from an async test, on the test's own loop; a sync one in a thread.

    Arguments and errors are those of `run`.
    """
    context = _Context(cancelled, recorded or Recorded(), about)
    return await _run(_registered(handler), payload, context, store=store)


async def _run(handler: Handler, payload: Any, context: Context, *, store: bool) -> Any:
    given = _object(payload)
    if handler.is_async:
        return _result(await handler(given, context), store=store)
    return _result(await asyncio.to_thread(handler, given, context), store=store)


class _Context(Context):
    """Records progress, and is cancelled when the test says so."""

    __slots__ = ("_is_cancelled", "_recorded")

    def __init__(
        self, cancelled: bool | Callable[[], bool], recorded: Recorded, about: About
    ) -> None:
        given: dict[str, Any] = {**_DEFAULTS, **about}
        last = given.pop("last_checkpoint")
        super().__init__(
            **given,
            checkpoint=None if last is None else encode_checkpoint(last),
            save=lambda encoded: recorded.checkpoints.append(decode_checkpoint(encoded)),
        )
        self._is_cancelled = cancelled
        self._recorded = recorded

    def progress(self, percent: float | None = None, message: str = "") -> None:
        super().progress(percent, message)
        self._recorded.progress.append(Progress(percent, message))

    @property
    def cancelled(self) -> bool:
        return self._is_cancelled() if callable(self._is_cancelled) else self._is_cancelled


def _registered(handler: Callable[..., Any]) -> Handler:
    return HandlerRegistry().register(
        handler, name=getattr(handler, "__name__", type(handler).__name__)
    )


def _object(payload: Any) -> dict[str, Any]:
    """Return the payload as a worker gets it: a copy that went through JSON."""
    given = plain({} if payload is None else payload, "payload")
    if not isinstance(given, dict):
        raise TypeError(
            f"a payload is a JSON object, not {type(payload).__name__}: give a dict, a model or a "
            "dataclass"
        )
    return given


def _result(value: Any, *, store: bool) -> dict[str, Any] | BinaryResult | None:
    """Return what a worker would report; its rules are those of `taskqueue.worker.outcome`."""
    if value is None:
        return None
    limit = STORED_RESULT_BYTES if store else RESULT_BYTES
    if (binary := binary_of(value)) is not None:
        if not store:
            raise Fail(
                f"the result is {len(binary.body)} bytes of {binary.content_type}, and a status "
                f"takes JSON only: {NEEDS_STORE}",
                type="InvalidResult",
            )
        _check_size(len(binary.body), binary.content_type, limit)
        return binary
    try:
        found = plain(value, "result")
        result: dict[str, Any] = (
            found if isinstance(found, dict) else plain({"value": found}, "result")
        )
    except TypeError as error:
        raise Fail(
            f"the handler returned what is not JSON: {error}", type="InvalidResult"
        ) from error
    size = len(json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode())
    _check_size(size, "JSON", limit)
    return result


def _check_size(size: int, kind: str, limit: int) -> None:
    if size > limit:
        raise Fail(
            f"the result is {size} bytes of {kind}, the limit is {limit}: {NEEDS_STORE}",
            type="ResultTooLarge",
        )
