"""Waiting for objects to end, by a watch: when each was first seen ended, and how.

Used alike for Tasks, their copy of the floor and Jobs: all of them end with a condition Complete or
Failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

from taskqueue.kubernetes.client import ApiClient, ApiError
from tests.bench.deadline import BenchError, within

#: Leaves out what nothing was written about yet, so that a Task is one event.
TOUCHED_TASKS = {"fieldSelector": "status.phase!=Pending"}

_WATCH_SECONDS = 600


def ended(raw: Mapping[str, Any]) -> str | None:
    """Return "" for an object with condition Complete, why it failed for Failed, else None."""
    for condition in (raw.get("status") or {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            failed = condition["type"] == "Failed"
            said = f"{condition.get('reason', '')}: {condition.get('message', '')}"
            return said if failed else ""
    return None


def available(raw: Mapping[str, Any]) -> str | None:
    """Return "" for a Deployment with an available pod, else None."""
    return "" if (raw.get("status") or {}).get("availableReplicas") else None


class EndWatch:
    """Watches a collection while it is entered; times are those of `time.perf_counter`.

    Args:
        client: with a connection to spare.
        path: of the collection.
        selectors: labelSelector and fieldSelector.
        is_ended: "" for an object that ended well, a text for one that failed, else None.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        *,
        selectors: Mapping[str, str] | None = None,
        is_ended: Callable[[Mapping[str, Any]], str | None] = ended,
    ) -> None:
        self._client = client
        self._path = path
        self._selectors = dict(selectors or {})
        self._is_ended = is_ended
        self._seen: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._missing: set[str] = set()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EndWatch:
        first = await self._client.request("GET", self._path, params={"limit": "1"})
        version = first["metadata"]["resourceVersion"]
        self._task = asyncio.create_task(self._watch(version))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def count(self) -> int:
        """How many have been seen ended."""
        return len(self._seen)

    async def all_ended(self, names: Collection[str], *, seconds: float) -> dict[str, float]:
        """Wait for these objects, and return when each was seen ended.

        Raises:
            BenchError: one failed, not all ended in time, or the watch broke.
        """
        self._missing = {name for name in names if name not in self._seen}
        if self._missing:
            self._waiter = asyncio.get_running_loop().create_future()
            if self._task is not None and self._task.done():
                self._broken(self._task)
            try:
                async with within(seconds, f"waiting for {len(names)} objects at {self._path}"):
                    await self._waiter
            except BenchError as problem:
                if self._missing:
                    left = f"{len(self._missing)} of {len(names)} are left"
                    raise BenchError(f"{problem}; {left}, such as {min(self._missing)}") from None
                raise
        failed = [name for name in names if name in self._failed]
        if failed:
            raise BenchError(
                f"{len(failed)} of {len(names)} at {self._path} failed, such as {failed[0]}: "
                f"{self._failed[failed[0]]}"
            )
        return {name: self._seen[name] for name in names}

    async def _watch(self, version: str) -> None:
        try:
            while True:
                events = self._client.watch(
                    self._path,
                    timeout_seconds=_WATCH_SECONDS,
                    resourceVersion=version,
                    **self._selectors,
                )
                async for event in events:
                    if event["type"] == "ERROR":
                        raise BenchError(f"the watch of {self._path} broke: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "DELETED":
                        self._take(event["object"])
        except (BenchError, ApiError) as problem:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(problem)
            raise

    def _take(self, raw: Mapping[str, Any]) -> None:
        said = self._is_ended(raw)
        name = raw["metadata"]["name"]
        if said is None or name in self._seen:
            return
        self._seen[name] = time.perf_counter()
        if said:
            self._failed[name] = said
        self._missing.discard(name)
        if not self._missing and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _broken(self, task: asyncio.Task[None]) -> None:
        problem = task.exception()
        raise BenchError(f"the watch of {self._path} ended: {problem}")
