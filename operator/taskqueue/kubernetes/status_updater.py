"""Writes statuses: only the latest of each object, many objects at once.

Contract:

* At most one write of an object is under way; a newer status put meanwhile waits, and replaces
  one that already waited. Its callback is called with the fate of the write that contains it.
* Urgent statuses (those that end something) go first, but for one in sixteen: without end, they
  would keep the others waiting without end.
* An answer of 429 makes the whole writer wait as long as the server asks. What may succeed later
  is tried again for ever, with the latest status; what cannot is handed back as `WriteRefused`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import JSON_PATCH, ApiClient, ApiError
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Writes under way at once, each on a connection of the writer's own pool.
CONCURRENCY = 16
#: After so many urgent writes in a row a waiting other one has its turn.
_URGENT_IN_A_ROW = 15
_FIRST_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Written:
    """The status is in the API server.

    Attributes:
        generation: of the object, 0 when not told.
        version: of the object, as a number that grows with every write in the cluster; 0 when not
            told.
    """

    generation: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """The API server will never take this status; ``status`` is its HTTP answer."""

    status: int
    message: str


Fate = Written | WriteRefused
OnFate = Callable[[Fate], None]


@dataclass(slots=True)
class _Slot:
    path: str
    body: bytes = b""
    urgent: bool = False
    waiting: bool = False
    writing: bool = False
    callbacks: list[OnFate] = field(default_factory=list)


def version_of(metadata: Mapping[str, Any]) -> int:
    """Return an object's resourceVersion, which Kubernetes' API server makes a growing number."""
    version = str(metadata.get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


class StatusUpdater:
    """See the module's contract. `run` must be running for anything to be written."""

    def __init__(self, client: ApiClient, *, concurrency: int = CONCURRENCY) -> None:
        self._client = client
        self._concurrency = concurrency
        self._slots: dict[str, _Slot] = {}
        self._urgent: deque[_Slot] = deque()
        self._normal: deque[_Slot] = deque()
        self._urgent_in_a_row = 0
        self._wake = asyncio.Semaphore(0)
        self._resume = asyncio.Event()
        self._resume.set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, path: str, body: bytes, on_fate: OnFate, *, urgent: bool = False) -> None:
        """Have ``body`` applied to the ``/status`` at ``path``.

        Args:
            path: of the status subresource; it identifies the object.
            body: JSON patch; it replaces the status.
            on_fate: called once, when a write that contains this status (or a later one) is done.
            urgent: ends something: goes before what does not.
        """
        slot = self._slots.get(path)
        if slot is None:
            slot = self._slots[path] = _Slot(path)
            self._idle.clear()
        slot.body = body
        slot.callbacks.append(on_fate)
        if not slot.waiting:
            slot.waiting, slot.urgent = True, urgent
            if not slot.writing:
                self._enqueue(slot)
        elif urgent and not slot.urgent:
            slot.urgent = True
            if not slot.writing:
                self._enqueue(slot)  # its older place in the other line is skipped later

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._write_for_ever())

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is left to write, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _enqueue(self, slot: _Slot) -> None:
        (self._urgent if slot.urgent else self._normal).append(slot)
        self._wake.release()

    async def _write_for_ever(self) -> None:
        while True:
            await self._wake.acquire()
            await self._resume.wait()
            slot = self._next()
            if slot.waiting and not slot.writing:
                await self._write(slot)

    def _next(self) -> _Slot:
        fair = self._normal and self._urgent_in_a_row >= _URGENT_IN_A_ROW
        if self._urgent and not fair:
            self._urgent_in_a_row += 1
            return self._urgent.popleft()
        self._urgent_in_a_row = 0
        return self._normal.popleft()

    async def _write(self, slot: _Slot) -> None:
        slot.writing = True
        backoff = Backoff(first_seconds=_FIRST_PAUSE)
        while True:
            # Taken anew at each try: a newer status may have come while we waited.
            body, callbacks = slot.body, slot.callbacks
            slot.waiting, slot.urgent, slot.callbacks = False, False, []
            try:
                answer = await self._client.request(
                    "PATCH", slot.path, body=body, content_type=JSON_PATCH
                )
                metadata = answer.get("metadata") or {}
                fate: Fate = Written(metadata.get("generation", 0), version_of(metadata))
                break
            except ApiError as problem:
                if not problem.transient:
                    fate = WriteRefused(problem.status, problem.message)
                    break
                slot.callbacks = callbacks + slot.callbacks
                log.warning("status.write_failed", path=slot.path, problem=str(problem))
                pause = problem.retry_after or backoff.next_delay()
                await self._pause(pause, all_writers=problem.status == 429)
        slot.writing = False
        if slot.waiting:
            self._enqueue(slot)
        else:
            del self._slots[slot.path]
            if not self._slots:
                self._idle.set()
        for callback in callbacks:
            try:
                callback(fate)
            except Exception as problem:  # a writer that ends would end all writing
                log.error("status.callback_failed", exc_info=problem, path=slot.path)

    async def _pause(self, seconds: float, *, all_writers: bool) -> None:
        if not all_writers:
            await asyncio.sleep(seconds)
            return
        self._resume.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._resume.set()
