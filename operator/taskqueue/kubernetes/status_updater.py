"""Writes the latest status of each object, many objects concurrently.

Contract:

* At most one write of an object is in flight. A newer status waits for it, and replaces one that
  already waits. Each callback is called with the result of the write that contains its status.
* Urgent statuses (those that end something) go first, except for one write in sixteen: a steady
  stream of them must not starve the others.
* A 429 response pauses all writes for as long as the server asks. A write that may succeed later is
  retried without limit, with the latest status; one that cannot ends as `WriteRefused`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import JSON_PATCH, METADATA, ApiClient, ApiError, version_of
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Writes in flight at once, each on a connection of the updater's own pool.
CONCURRENCY = 16
#: After this many urgent writes in a row one that is not urgent has its turn.
_URGENT_IN_A_ROW = 15
_FIRST_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Written:
    """The status is in the API server.

    Attributes:
        generation: of the object; 0 when the response has none.
        version: of the object: a number that grows with every write; 0 when the response has none.
    """

    generation: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """The API server will never accept this status; ``status`` is its HTTP status."""

    status: int
    message: str


WriteResult = Written | WriteRefused
OnResult = Callable[[WriteResult], None]


@dataclass(slots=True)
class _PendingStatus:
    path: str
    body: bytes = b""
    urgent: bool = False
    waiting: bool = False
    writing: bool = False
    callbacks: list[OnResult] = field(default_factory=list)


class StatusUpdater:
    """Writes the latest status of each object; nothing is written unless `run` is running.

    Args:
        client: with a connection for each concurrent write.
        concurrency: writes in flight at once.
    """

    def __init__(self, client: ApiClient, *, concurrency: int = CONCURRENCY) -> None:
        self._client = client
        self._concurrency = concurrency
        self._pending: dict[str, _PendingStatus] = {}
        self._urgent: deque[_PendingStatus] = deque()
        self._normal: deque[_PendingStatus] = deque()
        self._urgent_in_a_row = 0
        self._wake = asyncio.Semaphore(0)
        self._resume = asyncio.Event()
        self._resume.set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, path: str, body: bytes, on_result: OnResult, *, urgent: bool = False) -> None:
        """Schedule a write of ``body`` to the status subresource at ``path``.

        Args:
            path: of the status subresource; it identifies the object.
            body: JSON patch that replaces the status.
            on_result: called once, when a write of this status or a later one has ended.
            urgent: write it before statuses that are not urgent.
        """
        pending = self._pending.get(path)
        if pending is None:
            pending = self._pending[path] = _PendingStatus(path)
            self._idle.clear()
        pending.body = body
        pending.callbacks.append(on_result)
        if not pending.waiting:
            pending.waiting, pending.urgent = True, urgent
            if not pending.writing:
                self._enqueue(pending)
        elif urgent and not pending.urgent:
            pending.urgent = True
            if not pending.writing:
                self._enqueue(pending)  # its place in the other queue is skipped later

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._write_loop())

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is left to write, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _enqueue(self, pending: _PendingStatus) -> None:
        (self._urgent if pending.urgent else self._normal).append(pending)
        self._wake.release()

    async def _write_loop(self) -> None:
        while True:
            await self._wake.acquire()
            await self._resume.wait()
            pending = self._next()
            if pending.waiting and not pending.writing:
                await self._write(pending)

    def _next(self) -> _PendingStatus:
        fair = self._normal and self._urgent_in_a_row >= _URGENT_IN_A_ROW
        if self._urgent and not fair:
            self._urgent_in_a_row += 1
            return self._urgent.popleft()
        self._urgent_in_a_row = 0
        return self._normal.popleft()

    async def _write(self, pending: _PendingStatus) -> None:
        pending.writing = True
        backoff: Backoff | None = None  # made at the first failure: most writes have none
        while True:
            # Read at each try: a newer status may have come during the delay.
            body, callbacks = pending.body, pending.callbacks
            pending.waiting, pending.urgent, pending.callbacks = False, False, []
            try:
                # Not the object, which may be one that cannot be read.
                answer = await self._client.request(
                    "PATCH",
                    pending.path,
                    body=body,
                    content_type=JSON_PATCH,
                    accept=METADATA,
                    levels=2,
                )
                metadata = answer.get("metadata") or {}
                result: WriteResult = Written(metadata.get("generation", 0), version_of(metadata))
                break
            except ApiError as error:
                if not error.transient:
                    result = WriteRefused(error.status, error.message)
                    break
                pending.callbacks = callbacks + pending.callbacks
                log.warning("status.write_failed", path=pending.path, error=str(error))
                backoff = backoff or Backoff(first_seconds=_FIRST_PAUSE)
                pause = error.retry_after or backoff.next_delay()
                await self._pause(pause, all_writers=error.status == 429)
        pending.writing = False
        if pending.waiting:
            self._enqueue(pending)
        else:
            del self._pending[pending.path]
            if not self._pending:
                self._idle.set()
        for callback in callbacks:
            try:
                callback(result)
            except Exception as error:  # must not end this write loop
                log.error("status.callback_failed", exc_info=error, path=pending.path)

    async def _pause(self, seconds: float, *, all_writers: bool) -> None:
        if not all_writers:
            await asyncio.sleep(seconds)
            return
        self._resume.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._resume.set()
