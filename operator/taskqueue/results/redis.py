"""Results as hashes in Redis or Valkey, which deletes them by itself; redis-py is its client.

What Redis has acknowledged is as safe as its configuration makes it: with ``appendfsync always``
it survives a kill, with ``everysec`` the last second may be lost. An eviction policy other than
``noeviction`` deletes results before their time.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from taskqueue.results.connection import StoreConnection
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError, existing

_T = TypeVar("_T")

#: Connections of one process.
_CONNECTIONS = 4

_TYPE, _BODY = b"type", b"body"


#: What an address of others may set; others name files, or override what we set ourselves.
_FOREIGN = frozenset(
    {"db", "username", "password", "protocol", "client_name", "ssl_cert_reqs", "ssl_check_hostname"}
)


def check_foreign(connection: StoreConnection) -> None:
    """See `taskqueue.results.connection.check_foreign`."""
    options = parse_qsl(urlsplit(connection.uri).query, keep_blank_values=True)
    refused = sorted({name for name, _ in options} - _FOREIGN)
    if refused:
        raise ValueError(
            f"the key uri has {', '.join(refused)}, which others may not set: use only "
            f"{', '.join(sorted(_FOREIGN))}"
        )


def open_store(
    connection: StoreConnection, *, retention_seconds: float | None, timeout: float
) -> ResultStore:
    """Return the store; see `taskqueue.results.connection.open_store`."""
    return RedisStore(connection, retention_seconds=retention_seconds, timeout=timeout)


class RedisStore:
    """See `taskqueue.results.store.ResultStore`."""

    def __init__(
        self, connection: StoreConnection, *, retention_seconds: float | None, timeout: float
    ) -> None:
        self._where = connection.where
        self._retention_ms = None if retention_seconds is None else int(1000 * retention_seconds)
        try:
            pool = redis.BlockingConnectionPool.from_url(
                connection.uri,
                max_connections=_CONNECTIONS,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # Its own would go on for longer than the time-out.
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            message = f"the address {self._where} is not one of Redis: {error}"
            raise StoreError(message, transient=False) from error
        self._redis = redis.Redis(connection_pool=pool)

    async def put(self, key: str, result: StoredResult) -> StoredResult:
        """Write a hash and its time to live, in one transaction."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hsetnx(key, _TYPE, result.content_type.encode())
        pipeline.hsetnx(key, _BODY, result.body)
        if self._retention_ms is None:
            pipeline.persist(key)
        else:
            pipeline.pexpire(key, self._retention_ms)
        written, *_ = await self._call(f"write {key}", pipeline.execute())
        return result if written else await existing(self, key)

    async def get(self, key: str) -> StoredResult | None:
        """Read a hash."""
        found = await self._call(f"read {key}", self._redis.hmget(key, [_TYPE, _BODY]))
        kind, body = cast(list[bytes | None], found)  # bytes, as nothing is decoded
        return None if body is None else StoredResult(body, (kind or b"").decode())

    async def delete_before(self, prefix: str, moment: float) -> int:
        """Nothing: what has expired is gone."""
        return 0

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose(close_connection_pool=True)

    async def _call(self, what: str, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except (exceptions.RedisError, OSError) as error:
            raise StoreError(
                f"cannot {what} in {self._where}: {_describe(error)}",
                transient=_is_transient(error),
            ) from error


#: Answers that pass by themselves: it starts, fails over, or has no memory left at the moment.
_TRANSIENT_ANSWERS = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False
    if isinstance(error, exceptions.ResponseError):
        return isinstance(error, exceptions.ReadOnlyError | exceptions.OutOfMemoryError) or str(
            error
        ).startswith(_TRANSIENT_ANSWERS)
    return not isinstance(error, exceptions.DataError)


def _describe(error: Any) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, exceptions.AuthenticationError):
        return f"{text}; check user and password in the Secret"
    if isinstance(error, exceptions.NoPermissionError):
        return f"{text}; let the user run HSETNX, HMGET, PEXPIRE, PERSIST and MULTI on the keys"
    if text.startswith("MOVED"):
        return f"{text}; this is a Redis cluster: give the address of a single server or a proxy"
    return text
