"""Calls a store that may be away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from taskqueue import logs
from taskqueue.backoff import Backoff
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError

log = logs.EventLog("taskqueue.results")

T = TypeVar("T")

#: How long a store may be away before an attempt whose result it should keep fails, in seconds.
PATIENCE_SECONDS = 60.0


async def put_patiently(
    store: ResultStore,
    key: str,
    result: StoredResult,
    *,
    seconds: float = PATIENCE_SECONDS,
    backoff: Backoff | None = None,
) -> StoredResult:
    """Write a result, again and again while the store is away; return the one that is there.

    Args:
        store: where to.
        key: of the result.
        result: what is written.
        seconds: how long from now.
        backoff: of the pauses.

    Raises:
        StoreError: the last one, when the time is up; at once if trying again would not help.
    """
    return await patiently(partial(store.put, key, result), key, seconds=seconds, backoff=backoff)


async def patiently(
    call: Callable[[], Awaitable[T]], key: str, *, seconds: float, backoff: Backoff | None = None
) -> T:
    """Call a store again and again while it is away; return what it returns.

    Args:
        call: may use another store each time.
        key: of the result, for the log.
        seconds: how long from now.
        backoff: of the pauses.

    Raises:
        StoreError: the last one, when the time is up; at once if trying again would not help.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pauses = backoff or Backoff(clock=loop.time)
    while True:
        try:
            return await call()
        except StoreError as error:
            pause = pauses.next_delay()
            left = deadline - loop.time()
            if not error.transient or pause >= left:
                raise
            log.warning("store.unavailable", key=key, error=str(error), seconds_left=round(left))
        await asyncio.sleep(pause)
