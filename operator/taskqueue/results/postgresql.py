"""Results as rows of PostgreSQL, in the table `taskqueue_results`; psycopg is its client.

psycopg stands on libpq: an address means what it means to psql, with its TLS modes and several
hosts to choose from. Its pool is not used, because it does not say why it cannot connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict

from taskqueue.results.connection import StoreConnection
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError

_T = TypeVar("_T")

#: Connections of one process.
_CONNECTIONS = 4

# The collation makes keys that begin alike a range of the primary key.
_CREATE = """
CREATE TABLE IF NOT EXISTS taskqueue_results (
    key text COLLATE "C" PRIMARY KEY,
    content_type text NOT NULL,
    body bytea NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
)
"""
#: Two that create a table at once would disturb each other; any number that is only ours.
_LOCK = "SELECT pg_advisory_xact_lock(7451398226650117)"
_PUT = """
INSERT INTO taskqueue_results (key, content_type, body) VALUES (%s, %s, %b)
ON CONFLICT (key) DO NOTHING
"""
_GET = "SELECT content_type, body FROM taskqueue_results WHERE key = %s"
_DELETE = """
DELETE FROM taskqueue_results WHERE key IN (
    SELECT key FROM taskqueue_results
    WHERE key >= %s AND key < %s AND written_at < %s LIMIT %s
)
"""
#: Rows that one statement deletes.
_PORTION = 500

#: SQLSTATE classes and codes that pass by themselves: no connection, serialization, resources,
#: intervention of an operator, a standby that is about to lead, and a lock.
_TRANSIENT_CLASSES = {"08", "40", "53", "57"}
_TRANSIENT_CODES = {"25006", "55P03"}
#: What libpq says, in words only, when a server refuses the login.
_LOGIN = ("authentication failed", "does not exist", "no pg_hba.conf entry", "not permit")


#: What an address of others may set, beside the server, the user and the database. Many of the rest
#: name files: of certificates and keys, passwords, services, or one to write the session's keys to.
_FOREIGN = frozenset(
    """
    host hostaddr port dbname user password connect_timeout application_name
    fallback_application_name client_encoding options keepalives keepalives_idle
    keepalives_interval keepalives_count tcp_user_timeout sslmode sslnegotiation
    sslcompression sslsni ssl_min_protocol_version ssl_max_protocol_version
    min_protocol_version max_protocol_version gssencmode channel_binding require_auth
    target_session_attrs load_balance_hosts sslrootcert
    """.split()  # noqa: SIM905
)


def check_foreign(connection: StoreConnection) -> None:
    """See `taskqueue.results.connection.check_foreign`."""
    try:
        found = conninfo_to_dict(connection.uri)
    except psycopg.Error:  # its text has a part of the address
        raise ValueError("the key uri is not an address of PostgreSQL: correct it") from None
    refused = sorted(found.keys() - _FOREIGN)
    if found.get("sslrootcert", "system") != "system":
        refused.append("sslrootcert")
    if refused:
        raise ValueError(
            f"the key uri has {', '.join(refused)}, which could name files of the program that "
            "connects: leave it out; sslrootcert=system trusts the certificates of its image"
        )
    hosts = str(found.get("host") or found.get("hostaddr") or "").split(",")
    if any(not host or host.startswith(("/", "@")) for host in hosts):
        raise ValueError("the key uri names no host, or a Unix socket: give the name of a host")


def open_store(
    connection: StoreConnection, *, retention_seconds: float | None, timeout: float
) -> ResultStore:
    """Return the store; see `taskqueue.results.connection.open_store`."""
    return PostgresqlStore(connection, timeout=timeout)


class PostgresqlStore:
    """See `taskqueue.results.store.ResultStore`."""

    def __init__(self, connection: StoreConnection, *, timeout: float) -> None:
        self._uri = connection.uri
        self._where = connection.where
        self._timeout = timeout
        self._idle: list[AsyncConnection] = []
        self._places = asyncio.Semaphore(_CONNECTIONS)

    async def put(self, key: str, result: StoredResult) -> StoredResult:
        """Write a row."""

        async def write(connection: AsyncConnection) -> StoredResult:
            while True:  # the row may be deleted between the two statements
                cursor = await connection.execute(_PUT, (key, result.content_type, result.body))
                if cursor.rowcount:
                    return result
                if (found := await _read(connection, key)) is not None:
                    return found

        return await self._call(f"write {key}", write)

    async def get(self, key: str) -> StoredResult | None:
        """Read a row."""
        return await self._call(f"read {key}", partial(_read, key=key))

    async def delete_before(self, prefix: str, moment: float) -> int:
        """Delete rows, some with each statement."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        at = datetime.fromtimestamp(moment, UTC)

        async def delete(connection: AsyncConnection) -> int:
            cursor = await connection.execute(_DELETE, (prefix, end, at, _PORTION))
            return cursor.rowcount

        deleted, portion = 0, _PORTION
        while portion == _PORTION:
            portion = await self._call(f"delete expired results of {prefix}", delete)
            deleted += portion
        return deleted

    async def close(self) -> None:
        """Close the connections that nobody uses; the others when they are no longer used."""
        self._places = asyncio.Semaphore(0)
        while self._idle:
            await self._idle.pop().close()

    async def _call(self, what: str, call: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(self._timeout), self._places:
                while self._idle:
                    connection = self._idle.pop()
                    try:
                        return await self._use(connection, call)
                    except psycopg.OperationalError:
                        if not connection.closed:
                            raise
                        # The server has been restarted since: the others are no better.
                return await self._use(await self._connect(), call)
        except TimeoutError as error:
            raise self._error(what, f"no answer in {self._timeout:g} s", transient=True) from error
        except (psycopg.Error, OSError, ValueError) as error:
            raise self._error(what, _describe(error), transient=_is_transient(error)) from error

    async def _connect(self) -> AsyncConnection:
        return await AsyncConnection.connect(
            self._uri,
            autocommit=True,
            connect_timeout=max(2, round(self._timeout)),
            # A pooler between them may give each statement another session.
            prepare_threshold=None,
        )

    async def _use(
        self, connection: AsyncConnection, call: Callable[[AsyncConnection], Awaitable[_T]]
    ) -> _T:
        """Do it, and keep the connection if nothing is wrong with it."""
        try:
            try:
                result = await run_on(connection, call)
            except errors.UndefinedTable:
                await run_on(connection, _create_table)
                result = await run_on(connection, call)
        except BaseException:
            await connection.close()
            raise
        self._idle.append(connection)
        return result

    def _error(self, what: str, why: str, *, transient: bool) -> StoreError:
        return StoreError(f"cannot {what} in {self._where}: {why}", transient=transient)


async def run_on(
    connection: AsyncConnection, call: Callable[[AsyncConnection], Awaitable[_T]]
) -> _T:
    """Use a connection; when cancelled, break it instead of waiting for the server.

    psycopg itself would ask the server to cancel the statement, and wait 10 s for one that hangs.
    """
    work = asyncio.ensure_future(call(connection))
    try:
        await asyncio.wait({work})
    except asyncio.CancelledError:
        _shut_down(connection)  # what is under way fails at once
        await asyncio.gather(work, return_exceptions=True)
        raise
    return work.result()


def _shut_down(connection: AsyncConnection) -> None:
    with contextlib.suppress(psycopg.Error, OSError):
        there = socket.socket(fileno=os.dup(connection.pgconn.socket))
        with there:
            there.shutdown(socket.SHUT_RDWR)


async def _create_table(connection: AsyncConnection) -> None:
    async with connection.transaction():
        await connection.execute(_LOCK)
        await connection.execute(_CREATE)


async def _read(connection: AsyncConnection, key: str) -> StoredResult | None:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_GET, (key,))
    row = await cursor.fetchone()
    return None if row is None else StoredResult(body=row[1], content_type=row[0])


def _is_transient(error: Exception) -> bool:
    if isinstance(error, psycopg.Error):
        code = error.sqlstate
        if code is None:  # not from the server: there was no connection, or it broke
            return isinstance(error, psycopg.OperationalError) and not is_login(error)
        return passes(code)
    return isinstance(error, OSError)


def passes(code: str) -> bool:
    """Return whether what a SQLSTATE stands for passes by itself."""
    return code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES


def is_login(error: Exception) -> bool:
    """Return whether the server refused the login: libpq says so in words only."""
    return any(one in str(error) for one in _LOGIN)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.InsufficientPrivilege):
        return (
            f"{text}; let the user create the table taskqueue_results, or create it for the user "
            "and grant SELECT, INSERT, UPDATE and DELETE"
        )
    if isinstance(error, psycopg.OperationalError) and is_login(error):
        return f"{text}; check user, password and database in the Secret"
    return text
