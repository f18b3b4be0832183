"""Reads a Task, from an object or from the API server, however long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import ApiClient, ApiError, ErrorKind
from taskqueue.kubernetes.informer import identity
from taskqueue.kubernetes.task_codec import read_outline, read_task, task_path
from taskqueue.kubernetes.task_table import get_outline
from taskqueue.logs import EventLog
from taskqueue.model.task import Task

log = EventLog(__name__)

_NOT_FOUND = 404
#: Pauses between reads that fail, in seconds: the first, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


def read_what_can_be(raw: Mapping[str, Any]) -> Task | None:
    """Return a Task object's Task, or its outline; None: not even that, and the log says why."""
    try:
        try:
            return read_task(raw)
        except (ValueError, KeyError, TypeError):
            return read_outline(raw)
    except (ValueError, KeyError, TypeError) as error:
        (namespace, name), uid = identity(raw)
        log.error("task.unreadable", namespace=namespace, task=name, uid=uid, error=str(error))
        return None


async def read_present(
    client: ApiClient,
    namespace: str,
    name: str,
    uid: str,
    *,
    as_outline: bool = False,
    on_refused: Callable[[str], None] = lambda why: None,
) -> tuple[Task, Mapping[str, Any]] | None:
    """Return this very Task as it is now, and its metadata; None: it is deleted.

    Whatever else the answer is, it does not say what became of the Task: it is read again. An
    outline has all of the status that says so, and can nearly always be read.

    Args:
        client: for the API server.
        namespace: of the Task.
        name: of the Task.
        uid: of the Task.
        as_outline: read as much of it as it takes to end it.
        on_refused: called once, when the API server that answers does not show it.
    """
    backoff: Backoff | None = None
    was_refused = False
    while True:
        try:
            if as_outline:
                raw = await get_outline(client, namespace, name)
            else:
                raw = await client.get(task_path(namespace, name))
            task = read_outline(raw) if as_outline else read_task(raw)
            return (task, raw["metadata"]) if task.uid == uid else None
        except (ApiError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ApiError) and error.status == _NOT_FOUND:
                return None
            if backoff is None:
                backoff = Backoff(first_seconds=_FIRST_PAUSE, longest_seconds=_LONGEST_PAUSE)
                text = str(error)
                log.warning("task.not_read", namespace=namespace, task=name, error=text)
            if not (was_refused or _says_nothing(error)):
                was_refused = True
                on_refused(str(error))
            pause = error.retry_after if isinstance(error, ApiError) else None
            await asyncio.sleep(pause or backoff.next_delay())


def _says_nothing(error: Exception) -> bool:
    """Return whether an error is of the API server, or the way to it, and not of the Task."""
    passing = (ErrorKind.UNAVAILABLE, ErrorKind.THROTTLED)
    return isinstance(error, ApiError) and error.kind in passing
