"""Reads from the API server on behalf of many namespaces, a few reads at once.

`taskqueue.controller.tasks.read_queue` has the order. Nothing runs while nothing is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic

from taskqueue.controller.tasks.read_queue import K, ReadQueue
from taskqueue.kubernetes.client import ApiError
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: A timer of the loop may fire so much too early.
_EARLY_SECONDS = 0.001

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class ReadPool(Generic[K]):
    """Reads each key once at a time, in the order of a `ReadQueue`.

    Args:
        read: reads a key; returns None, or after how many seconds it is to be read again, or after
            longer if it was read again before. What it raises is logged, and the key is tried again
            after a pause of its namespace.
        what: is read; for the log.
        at_once: reads that may be under way.
        longest_seconds: the longest wait between two reads of a key.
        spawn: runs the reads beside everything else.
    """

    def __init__(
        self,
        read: Callable[[K], Awaitable[float | None]],
        *,
        what: str,
        at_once: int,
        longest_seconds: float,
        spawn: Spawn,
    ) -> None:
        self._read = read
        self._what = what
        self._at_once = at_once
        self._spawn = spawn
        self._queue: ReadQueue[K] = ReadQueue(longest_seconds=longest_seconds)
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None

    def request(self, key: K) -> None:
        """Have a key read as soon as it is its turn."""
        self._queue.add(key)
        self._start()

    def request_later(self, key: K, seconds: float) -> None:
        """Have a key read after some seconds, unless it is to be read already."""
        self._queue.add_later(key, asyncio.get_running_loop().time(), seconds)
        self._start()

    def discard(self, key: K) -> None:
        """Read a key no more; a read that is under way goes on, and is not repeated."""
        self._queue.discard(key)

    def _start(self) -> None:
        """Begin as many reads as may be under way, and be woken when the next is due."""
        loop = asyncio.get_running_loop()
        while self._running < self._at_once:
            key = self._queue.pop(loop.time())
            if key is None:
                self._wake_at(loop, self._queue.next_due())
                return
            self._running += 1
            self._spawn(self._work(key), f"reads of {self._what}")

    def _wake_at(self, loop: asyncio.AbstractEventLoop, due: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else loop.call_at(due + _EARLY_SECONDS, self._start)

    async def _work(self, key: K | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            while key is not None:
                await self._read_one(key, loop)
                await asyncio.sleep(0)  # a read may not have waited for anything
                key = self._queue.pop(loop.time())
        finally:
            self._running -= 1
        self._start()

    async def _read_one(self, key: K, loop: asyncio.AbstractEventLoop) -> None:
        try:
            again_after = await self._read(key)
        except ApiError as error:
            log.warning("object.not_read", what=self._what, namespace=key[0], error=str(error))
            self._queue.fail(key, loop.time(), error.retry_after or 0.0)
        except Exception as error:
            log.error("read.failed", exc_info=error, what=self._what, namespace=key[0])
            self._queue.fail(key, loop.time())
        else:
            self._queue.finish(key, loop.time(), again_after)
