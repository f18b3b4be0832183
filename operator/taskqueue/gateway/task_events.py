"""Follows one Task: as server-sent events, or until it has ended.

Contract of the events:

* Each has the whole status of the Task at that moment, so that none depends on one before. A status
  that lasts only briefly may be missing.
* ``id`` names the Task and its version. A client that comes back with it, after a restart of the
  gateway or to another replica, gets the present status unless it has it already.
* The last one is ``result``, with the final status, or ``gone``. After that the client closes. A
  client that comes back all the same is told not to by 204.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from taskqueue.client.access import ApiConnection
from taskqueue.client.errors import TaskGone
from taskqueue.client.status import FINISHED
from taskqueue.client.task_watch import LastSeen, TaskRef, watch_object
from taskqueue.direct.errors import ClientError
from taskqueue.gateway.problems import Problem, problem_of

#: What lies between here and the client must see a byte now and then, in seconds.
_HEARTBEAT_SECONDS = 15.0
#: How soon a client comes back, in milliseconds.
_RETRY_MS = 1000


def ref_of(task: Mapping[str, Any]) -> TaskRef:
    """Return which Task an object is."""
    metadata = task["metadata"]
    return TaskRef(metadata["namespace"], metadata["name"], metadata["uid"])


def event_id(task: Mapping[str, Any]) -> str:
    """Return the id of the event with this version of a Task."""
    return f"{task['metadata']['uid']}.{task['metadata']['resourceVersion']}"


def is_finished(task: Mapping[str, Any]) -> bool:
    """Return whether the phase of a Task is final."""
    return (task.get("status") or {}).get("phase") in FINISHED


def check_same(task: Mapping[str, Any], last_id: str) -> None:
    """Check that the Task is the one whose events a client had.

    Raises:
        Problem: 410, it is another one of the same name.
    """
    uid = last_id.partition(".")[0]
    if uid and uid != task["metadata"]["uid"]:
        raise Problem(
            410,
            "Gone",
            f"{ref_of(task)} was deleted, and another was created under its name: ask for the "
            "events of this one without Last-Event-ID",
        )


async def follow(
    caller: ApiConnection, task: TaskRef, draining: asyncio.Event
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Yield the object with each status, until it has ended; None: nothing new for a while.

    It also ends when the gateway is about to.

    Raises:
        TaskGone, Refused: of `watch_object`.
    """
    async with aclosing(watch_object(task, caller, LastSeen())) as versions:
        ending = asyncio.ensure_future(draining.wait())
        coming: asyncio.Future[dict[str, Any] | None] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(_next(versions))
                either: set[asyncio.Future[Any]] = {coming, ending}
                done, _ = await asyncio.wait(
                    either, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if coming in done:
                    version, coming = coming.result(), None
                    if version is None:
                        return
                    yield version
                elif done:
                    return
                else:
                    yield None
        finally:
            left: list[asyncio.Future[Any]] = [ending] if coming is None else [ending, coming]
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)


async def _next(versions: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
    return await anext(versions, None)


async def wait_for_end(
    caller: ApiConnection, task: dict[str, Any], seconds: float, draining: asyncio.Event
) -> dict[str, Any]:
    """Return the object when it has ended, or as it was last when it has not in time."""
    latest = task
    try:
        async with asyncio.timeout(seconds):
            async with aclosing(follow(caller, ref_of(task), draining)) as versions:
                async for version in versions:
                    latest = version or latest
    except (TimeoutError, ClientError):
        # The Task is there: that it cannot be waited for takes nothing from that.
        return latest
    return latest


async def event_stream(
    caller: ApiConnection, task: Mapping[str, Any], last_id: str, draining: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a Task; the module's docstring has the contract."""
    yield f"retry: {_RETRY_MS}\n\n".encode()
    before: Mapping[str, Any] = {}
    try:
        async with aclosing(follow(caller, ref_of(task), draining)) as versions:
            async for version in versions:
                if version is None:
                    yield b": still there\n\n"
                    continue
                if event_id(version) != last_id:
                    yield _event(version, before)
                before = version.get("status") or {}
    except TaskGone as error:
        yield _encode("gone", problem_of(error).body(""))
    except ClientError as error:
        yield _encode("problem", problem_of(error).body(""))


def _event(task: Mapping[str, Any], before: Mapping[str, Any]) -> bytes:
    status = task.get("status") or {}
    kind = "status"
    if is_finished(task):
        kind = "result"
    elif before and _without_progress(before) == _without_progress(status):
        kind = "progress"
    metadata = task["metadata"]
    data = {"name": metadata["name"], "uid": metadata["uid"], "status": status}
    return _encode(kind, orjson.dumps(data), event_id(task))


def _without_progress(status: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name != "progress"}


def _encode(kind: str, data: bytes, id: str = "") -> bytes:
    lines = [f"event: {kind}".encode(), b"data: " + data]
    if id:
        lines.insert(0, f"id: {id}".encode())
    return b"\n".join(lines) + b"\n\n"
