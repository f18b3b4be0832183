"""Puts payloads together from ConfigMaps, before a Task is dispatched for the first time.

A ConfigMap that is missing or wrong keeps the Task waiting, and is read again every few seconds:
it may come later, or be mended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.task import PayloadSource, Task

#: How often a ConfigMap that is missing or wrong is read again.
AGAIN_SECONDS = 5.0
#: ConfigMaps read at once.
_READS_AT_ONCE = 4

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class _Unresolved(Exception):
    """A source that gives no object; the text says which, why, and what to do."""


class Payloads:
    """See the module's contract.

    Args:
        client: for the API server.
        spawn: runs the reading of one Task's payload beside everything else.
        look: called with a Task whose payload is there, or whose problem has changed.
    """

    def __init__(
        self, client: ApiClient, *, spawn: Spawn, look: Callable[[TrackedTask], None]
    ) -> None:
        self._client = client
        self._spawn = spawn
        self._look = look
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)

    def resolve(self, entry: TrackedTask) -> None:
        """Have the payload of a new Task put together, if there is anything to."""
        if entry.task.spec.payload_from:
            entry.payload_problem = ""
            self._spawn(self._resolve(entry), f"payload of {entry.task.path}")

    async def _resolve(self, entry: TrackedTask) -> None:
        while entry.stage is not TaskStage.FINISHED:
            try:
                entry.payload = await self._merged(entry.task)
                problem = None
            except _Unresolved as unresolved:
                problem = str(unresolved)
            if problem != entry.payload_problem:
                entry.payload_problem = problem
                self._look(entry)
            if problem is None:
                return
            await asyncio.sleep(AGAIN_SECONDS)

    async def _merged(self, task: Task) -> bytes:
        """Return the sources' objects merged in order, and the Task's own payload on top.

        Raises:
            _Unresolved: a source gives no object.
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
        except ApiError as problem:
            if problem.status == 404:
                raise _Unresolved(f"{where}: {name} does not exist: create it") from None
            raise _Unresolved(f"{where}: {name} cannot be read: {problem}") from None
        text = (found.get("data") or {}).get(source.key)
        if text is None:
            raise _Unresolved(f"{where}: {name} has no key {source.key}: add it")
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError as problem:
            raise _Unresolved(
                f"{where}: key {source.key} of {name} is no JSON ({problem}): mend it"
            ) from None
        if not isinstance(parsed, dict):
            raise _Unresolved(
                f"{where}: key {source.key} of {name} is no JSON object: write {{...}} there"
            )
        return parsed
