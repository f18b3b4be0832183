"""Reads the results of Tasks from the stores of their TaskQueues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from taskqueue.api.common import API_VERSION, TASKQUEUE_PLURAL
from taskqueue.client.access import ApiConnection
from taskqueue.client.errors import ResultExpired, ResultUnavailable
from taskqueue.client.requests import is_transient, request_with_retries
from taskqueue.exact_json import decode
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable, read_secret
from taskqueue.model.result import ResultReference, output_key
from taskqueue.results.binary import BinaryResult
from taskqueue.results.connection import (
    StoreConnection,
    check_foreign,
    open_store,
    read_connection,
)
from taskqueue.results.patience import patiently
from taskqueue.results.reference import JSON, ResultDamagedError, StoredResult, check_result
from taskqueue.results.store import ResultStore, StoreError

#: What a handler returned: a JSON object, bytes, or nothing.
ResultValue = dict[str, Any] | BinaryResult | None

#: How many epochs of an attempt are looked at for its output.
_EPOCHS = 8

_ADVICE = (
    "give the program's service account a role to get this TaskQueue and the Secret "
    "(docs/guides/results.md), or give the client results="
)


class ResultReader:
    """Reads results, from one store or from those that TaskQueues name.

    Args:
        results: the address of the store, or the keys of its Secret; None: each TaskQueue names its
            own, which is looked up when it is needed first.
        patience_seconds: how long a store that is away is asked again.

    Raises:
        ValueError: no store has such an address.
    """

    def __init__(self, results: str | Mapping[str, str] | None, *, patience_seconds: float) -> None:
        keys = {"uri": results} if isinstance(results, str) else results
        self._given = None if keys is None else read_connection(keys)
        self._patience = patience_seconds
        self._stores: dict[tuple[str, str], ResultStore] = {}
        self._opening = asyncio.Lock()

    async def read(
        self, connection: ApiConnection, namespace: str, reference: ResultReference
    ) -> ResultValue:
        """Return a result.

        Raises:
            ResultExpired: it has been deleted, as its time was over.
            ResultUnavailable: it cannot be read; the text says why, and what to do.
        """
        queue = reference.key.split("/")[1]
        found = await self._get(connection, (namespace, queue), reference.key)
        if found is None:
            raise _missing(reference)
        return _value(reference, found)

    async def read_output(
        self, connection: ApiConnection, task: Mapping[str, Any], attempt: int
    ) -> str | None:
        """Return what an attempt has printed, None if nothing of it was kept.

        Args:
            connection: to the API server.
            task: the object.
            attempt: its number.

        Raises:
            ResultUnavailable: it cannot be read; the text says why, and what to do.
        """
        metadata, status = task["metadata"], task.get("status") or {}
        for entry in status.get("history") or ():
            if entry["attempt"] == attempt and entry.get("output"):
                return str(entry["output"])
        key = (metadata["namespace"], task["spec"]["queue"])
        # Recalled, an attempt runs again in a later epoch: the last one counts.
        epoch = status.get("epoch", 0)
        for each in range(epoch, max(epoch - _EPOCHS, -1), -1):
            name = output_key(
                namespace=key[0], queue=key[1], uid=metadata["uid"], attempt=attempt, epoch=each
            )
            found = await self._get(connection, key, name)
            if found is not None:
                return found.body.decode("utf-8", "replace")
        return None

    async def close(self) -> None:
        """Close all connections."""
        for key in list(self._stores):
            await self._close_store(key)

    async def _get(
        self, connection: ApiConnection, key: tuple[str, str], name: str
    ) -> StoredResult | None:
        """Read from the store of a TaskQueue."""

        async def read() -> StoredResult | None:
            # Looked up each time: another reader may have closed the store before.
            return await (await self._store(connection, key)).get(name)

        try:
            return await patiently(read, name, seconds=self._patience)
        except StoreError as error:
            await self._close_store(key)  # its Secret may say something else by now
            raise ResultUnavailable(
                f"{name} cannot be read: {error}", transient=error.transient
            ) from error

    async def _close_store(self, key: tuple[str, str]) -> None:
        store = self._stores.pop(key, None)
        if store is not None:
            await store.close()

    async def _store(self, connection: ApiConnection, key: tuple[str, str]) -> ResultStore:
        async with self._opening:
            if key not in self._stores:
                address = self._given or await self._find(connection, key)
                self._stores[key] = open_store(address)
            return self._stores[key]

    async def _find(self, connection: ApiConnection, key: tuple[str, str]) -> StoreConnection:
        """Return where the store of a TaskQueue is.

        Raises:
            ResultUnavailable: that cannot be found out.
        """
        namespace, queue = key
        what = f"the store of TaskQueue {namespace}/{queue}"
        path = (
            f"/apis/{API_VERSION}/namespaces/{quote(namespace, safe='')}/{TASKQUEUE_PLURAL}/"
            f"{quote(queue, safe='')}"
        )
        try:
            found = await request_with_retries(
                connection.requests, "GET", path, patience_seconds=self._patience
            )
            store = (found["spec"].get("results") or {}).get("store")
            if store is None:
                raise ResultUnavailable(
                    f"{what}: its spec.results.store is absent, so that nobody knows where the "
                    "result is: set it again, or give the client results=",
                    transient=False,
                )
            name = store["connectionSecret"]["name"]
            secret = await read_secret(
                connection.requests,
                (namespace, name),
                where=f"Secret {namespace}/{name}",
                advice="create it again",
            )
            address = read_connection(secret.data)
            check_foreign(address)
            return address
        except ApiError as error:
            advice = f": {_ADVICE}" if error.status == 403 else ""
            raise ResultUnavailable(
                f"{what} is not known: {error}{advice}", transient=is_transient(error)
            ) from error
        except SecretUnusable as error:
            text = _ADVICE if error.reason == "SecretForbidden" else str(error)
            raise ResultUnavailable(f"{what} is not known: {text}", transient=False) from error
        except ImportError as error:
            raise ResultUnavailable(
                f"{what} needs {error.name}: install taskqueue-operator[results]", transient=False
            ) from error
        except ValueError as error:
            raise ResultUnavailable(
                f"{what}: Secret {namespace}/{name}: {error}; or give the client results=",
                transient=False,
            ) from error


def _missing(reference: ResultReference) -> ResultUnavailable:
    expires = reference.expiration_time
    if expires is not None and expires <= time.time():
        return ResultExpired(
            f"the result {reference.key} has been deleted: spec.results.retentionSeconds of the "
            "TaskQueue was over",
            transient=False,
        )
    return ResultUnavailable(
        f"the store has no result {reference.key}: somebody has deleted it, the store has lost "
        "data, or spec.results.store of the TaskQueue names another one by now",
        transient=False,
    )


def _value(reference: ResultReference, found: StoredResult) -> ResultValue:
    try:
        check_result(reference, found)
        if reference.content_type != JSON:
            return BinaryResult(found.body, reference.content_type)
        value: dict[str, Any] = decode(found.body, "result")
    except (ResultDamagedError, ValueError) as error:
        raise ResultUnavailable(
            f"the result {reference.key} is damaged: {error}", transient=False
        ) from error
    return value
