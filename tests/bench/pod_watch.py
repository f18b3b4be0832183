"""A watch on a pool's pods from outside: when each was removed, how its containers ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from taskqueue.kubernetes.client import ApiClient
from tests.bench.deadline import BenchError
from tests.bench.removals import Removal

_WATCH_SECONDS = 600
#: What a container ends with that was sent SIGKILL.
_KILLED = 137


class PodWatch:
    """Watches the pods with some labels while it is entered.

    Attributes:
        removals: the pods removed so far, by when that was seen.
        most: the most pods there were at a time that were not on their way out.

    Args:
        client: with a connection to spare.
        path: of the pods.
        selector: their labels.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        *,
        selector: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.removals: list[Removal] = []
        self.most = 0
        self._client = client
        self._path = path
        self._selector = selector
        self._clock = clock
        self._present: set[str] = set()
        self._killed: set[tuple[str, str]] = set()
        self._restarts: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PodWatch:
        first = await self._client.get(self._path, labelSelector=self._selector)
        for raw in first["items"]:
            self.on_event("ADDED", raw)
        self._task = asyncio.create_task(self._watch(first["metadata"]["resourceVersion"]))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is None:
            return
        self._task.cancel()
        (end,) = await asyncio.gather(self._task, return_exceptions=True)
        if error is None and not isinstance(end, asyncio.CancelledError):
            raise BenchError(f"the watch of {self._path} broke, so pods were not counted: {end}")

    @property
    def killed_containers(self) -> int:
        """How many containers were seen ended by SIGKILL."""
        return len(self._killed)

    @property
    def restarts(self) -> int:
        """How often a container was started again in its pod."""
        return sum(self._restarts.values())

    def on_event(self, kind: str, raw: Mapping[str, Any]) -> None:
        """Process an event of the watch.

        Raises:
            BenchError: it says that the watch is broken.
        """
        if kind == "ERROR":
            raise BenchError(f"the watch of {self._path} broke: {raw}")
        pod = raw["metadata"]["name"]
        if kind != "DELETED" and "deletionTimestamp" not in raw["metadata"]:
            self._present.add(pod)
            self.most = max(self.most, len(self._present))
        elif pod in self._present:
            self._present.discard(pod)
            self.removals.append(Removal(pod, self._clock()))
        for container in (raw.get("status") or {}).get("containerStatuses") or ():
            self._restarts[f"{pod}/{container['name']}"] = container.get("restartCount", 0)
            for state in (container.get("state"), container.get("lastState")):
                ended = (state or {}).get("terminated") or {}
                if ended.get("exitCode") == _KILLED:
                    self._killed.add((pod, ended.get("containerID", "")))

    async def _watch(self, version: str) -> None:
        while True:
            events = self._client.watch(
                self._path,
                timeout_seconds=_WATCH_SECONDS,
                resourceVersion=version,
                labelSelector=self._selector,
            )
            async for event in events:
                self.on_event(event["type"], event["object"])
                version = event["object"]["metadata"]["resourceVersion"]
