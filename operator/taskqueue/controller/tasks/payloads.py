"""Merges payloads from ConfigMaps, before a Task is dispatched for the first time.

A ConfigMap that is missing or invalid keeps the Task waiting, and is read again every few seconds:
it may be created later, or fixed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.task import PayloadSource, Task

#: How often a missing or invalid ConfigMap is read again.
RETRY_SECONDS = 5.0
#: Concurrent reads of ConfigMaps.
_READS_AT_ONCE = 4

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class _Unresolved(Exception):
    """A source yields no object; the text has which, why, and what to do."""


class Payloads:
    """Resolves spec.payloadFrom.

    Args:
        client: for the API server.
        spawn: runs the reads of one Task's payload in the background.
        on_change: called with a Task whose payload or payload error has changed.
    """

    def __init__(
        self, client: ApiClient, *, spawn: Spawn, on_change: Callable[[TrackedTask], None]
    ) -> None:
        self._client = client
        self._spawn = spawn
        self._on_change = on_change
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)

    def resolve(self, entry: TrackedTask) -> None:
        """Start to resolve the payload of a new Task, if it has sources."""
        if entry.task.spec.payload_from:
            entry.payload_error = ""
            self._spawn(self._resolve(entry), f"payload of {entry.task.path}")

    async def _resolve(self, entry: TrackedTask) -> None:
        while entry.stage is not TaskStage.FINISHED:
            try:
                entry.payload = await self._merged(entry.task)
                error = None
            except _Unresolved as unresolved:
                error = str(unresolved)
            if error != entry.payload_error:
                entry.payload_error = error
                self._on_change(entry)
            if error is None:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _merged(self, task: Task) -> bytes:
        """Return the sources' objects merged in order, and the Task's own payload on top.

        Raises:
            _Unresolved: a source yields no object.
        """
        merged: dict[str, Any] = {}
        for place, source in enumerate(task.spec.payload_from):
            merged |= await self._object(task.namespace, source, f"spec.payloadFrom[{place}]")
        return orjson.dumps(merged | orjson.loads(task.spec.payload))

    async def _object(self, namespace: str, source: PayloadSource, where: str) -> dict[str, Any]:
        name = f"ConfigMap {namespace}/{source.config_map}"
        try:
            async with self._reads:
                found = await self._client.get(
                    f"/api/v1/namespaces/{namespace}/configmaps/{source.config_map}"
                )
        except ApiError as error:
            if error.status == 404:
                raise _Unresolved(f"{where}: {name} does not exist: create it") from None
            raise _Unresolved(f"{where}: {name} cannot be read: {error}") from None
        text = (found.get("data") or {}).get(source.key)
        if text is None:
            raise _Unresolved(f"{where}: {name} has no key {source.key}: add it")
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _Unresolved(
                f"{where}: key {source.key} of {name} is not valid JSON ({error}): fix it"
            ) from None
        if not isinstance(parsed, dict):
            raise _Unresolved(
                f"{where}: key {source.key} of {name} is not a JSON object: put {{...}} there"
            )
        return parsed
