"""Results as objects of a bucket, in S3 or what speaks like it; obstore is its client.

obstore stands on the object_store crate of Apache Arrow, in 6 MB, where the client for Python of
the same service takes 90.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import S3Store

from taskqueue.results.connection import StoreConnection
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError, existing

_T = TypeVar("_T")

#: What Amazon's own service is asked with when nobody names a region.
_REGION = "us-east-1"

#: Objects that one request lists or deletes.
_PAGE = 500


def check_foreign(connection: StoreConnection) -> None:
    """See `taskqueue.results.connection.check_foreign`."""
    if not (connection.access_key_id and connection.secret_access_key):
        raise ValueError(
            "there are no keys accessKeyId and secretAccessKey, and the role of the program that "
            "connects is not used for others: give both, or leave deleting to a rule of the bucket"
        )


def open_store(
    connection: StoreConnection, *, retention_seconds: float | None, timeout: float
) -> ResultStore:
    """Return the store; see `taskqueue.results.connection.open_store`."""
    return S3ResultStore(connection, timeout=timeout)


class S3ResultStore:
    """See `taskqueue.results.store.ResultStore`."""

    def __init__(self, connection: StoreConnection, *, timeout: float) -> None:
        self._where = connection.where
        self._timeout = timeout
        parts = urlsplit(connection.uri)
        if not parts.netloc:
            raise StoreError(
                "the address of a bucket has its name: s3://bucket/prefix", transient=False
            )
        options: dict[str, Any] = {"region": connection.region or _REGION}
        if connection.endpoint:
            options["endpoint"] = connection.endpoint
        if connection.access_key_id:
            options["access_key_id"] = connection.access_key_id
            options["secret_access_key"] = connection.secret_access_key
        try:
            self._store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options={
                    "timeout": timedelta(seconds=timeout),
                    "connect_timeout": timedelta(seconds=timeout),
                    "allow_http": connection.endpoint.startswith("http://"),
                },
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=timeout)},
                **options,
            )
        except exceptions.BaseError as error:
            message = f"{self._where} cannot be used: {_text(error)}"
            raise StoreError(message, transient=False) from error

    async def put(self, key: str, result: StoredResult) -> StoredResult:
        """Write an object in one request, which fails if there is one (If-None-Match)."""
        try:
            await self._call(
                f"write {key}",
                obstore.put_async(
                    self._store,
                    key,
                    result.body,
                    attributes={"Content-Type": result.content_type},
                    mode="create",
                    use_multipart=False,
                ),
            )
        except FileExistsError:
            return await existing(self, key)
        return result

    async def get(self, key: str) -> StoredResult | None:
        """Read an object."""
        try:
            return await self._call(f"read {key}", self._read(key))
        except FileNotFoundError:
            return None

    async def _read(self, key: str) -> StoredResult:
        found = await obstore.get_async(self._store, key)
        body = await found.bytes_async()
        return StoredResult(bytes(body), str(found.attributes.get("Content-Type", "")))

    async def delete_before(self, prefix: str, moment: float) -> int:
        """List the objects and delete the old ones, a page at a time."""
        deleted, at = 0, datetime.fromtimestamp(moment, UTC)
        what = f"delete expired results of {prefix}"
        pages = obstore.list(self._store, prefix=prefix, chunk_size=_PAGE).__aiter__()
        while True:
            page = await self._call(what, anext(pages, None))
            if page is None:
                return deleted
            old = [entry["path"] for entry in page if entry["last_modified"] < at]
            if old:
                await self._call(what, obstore.delete_async(self._store, old))
                deleted += len(old)

    async def close(self) -> None:
        """Nothing: its connections end with it."""

    async def _call(self, what: str, call: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._timeout):
                return await call
        except TimeoutError as error:
            message = f"cannot {what} in {self._where}: no answer in {self._timeout:g} s"
            raise StoreError(message, transient=True) from error
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(what) from error
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error) or what.startswith("write"):
                raise StoreError(
                    f"cannot {what} in {self._where}: there is no such bucket; create it",
                    transient=False,
                ) from error
            raise FileNotFoundError(what) from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            refused = isinstance(
                error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
            )
            hint = "; check the keys in the Secret and the bucket's policy" if refused else ""
            raise StoreError(
                f"cannot {what} in {self._where}: {_text(error)}{hint}", transient=not refused
            ) from error


def _text(error: Exception) -> str:
    """Return the first line; what follows is how the library came to it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
