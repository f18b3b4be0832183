"""Merges payloads from ConfigMaps, before a Task is dispatched for the first time.

A ConfigMap that is missing or wrong keeps the Task waiting, and is read again every few seconds:
it may come later, or be corrected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from taskqueue.exact_json import decode, decode_own, encode
from taskqueue.jsonable import NotJsonError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.task import PayloadSource, Task

#: How often a ConfigMap that is missing or wrong is read again.
RETRY_SECONDS = 5.0
#: ConfigMaps read at once.
_READS_AT_ONCE = 4

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class _Unresolved(Exception):
    """A source that gives no object; the text says which, why, and what to do."""


class Payloads:
    """Keeps the merged payloads of Tasks with spec.payloadFrom, by uid.

    Args:
        client: for the API server.
        spawn: runs the reading of one Task's payload beside everything else.
        on_resolved: called with a uid and the size of the merged payload in bytes, or with None
            when its error has changed.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        spawn: Spawn,
        on_resolved: Callable[[str, int | None], None],
    ) -> None:
        self._client = client
        self._spawn = spawn
        self._on_resolved = on_resolved
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._merged: dict[str, bytes] = {}
        self._errors: dict[str, str] = {}

    def body(self, task: Task) -> bytes:
        """Return the payload to publish, a JSON object in UTF-8."""
        return self._merged.get(task.uid, task.spec.payload)

    def error(self, uid: str) -> str | None:
        """Return why a payload cannot be merged; "": it is being read; None: there is none."""
        return self._errors.get(uid)

    def resolve(self, task: Task) -> None:
        """Have the payload of a new Task merged."""
        self._errors[task.uid] = ""
        self._spawn(self._resolve(task), f"payload of {task.path}")

    def discard(self, uid: str) -> None:
        """Keep nothing of a Task that is not dispatched any more."""
        self._merged.pop(uid, None)
        self._errors.pop(uid, None)

    async def _resolve(self, task: Task) -> None:
        while task.uid in self._errors:
            try:
                merged = await self._merge(task)
            except _Unresolved as unresolved:
                error = str(unresolved)
                if self._errors.get(task.uid, error) != error:
                    self._errors[task.uid] = error
                    self._on_resolved(task.uid, None)
            else:
                if self._errors.pop(task.uid, None) is not None:
                    self._merged[task.uid] = merged
                    self._on_resolved(task.uid, len(merged))
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _merge(self, task: Task) -> bytes:
        """Return the sources' objects merged in order, and the Task's own payload on top.

        Raises:
            _Unresolved: a source gives no object.
        """
        merged: dict[str, Any] = {}
        for place, source in enumerate(task.spec.payload_from):
            merged |= await self._object(task.namespace, source, f"spec.payloadFrom[{place}]")
        try:
            return encode(merged | decode_own(task.spec.payload), "payload")
        except NotJsonError as error:
            raise _Unresolved(f"spec.payloadFrom: merged, {error}") from None

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
            parsed = decode(text)
        except ValueError as error:
            raise _Unresolved(
                f"{where}: key {source.key} of {name} is not valid JSON ({error}): fix it"
            ) from None
        if not isinstance(parsed, dict):
            raise _Unresolved(
                f"{where}: key {source.key} of {name} is not a JSON object: put {{...}} there"
            )
        return parsed
