"""The archive: a table of PostgreSQL with a row for each Task that has ended.

A row is written once: the same uid again changes nothing, so whoever does not know whether a write
has succeeded writes again. Rows written together are there together or not at all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row

from taskqueue.archive.errors import ArchiveError, ArchiveTrouble
from taskqueue.archive.history import HistoryFilter, Place
from taskqueue.archive.migrations import migrate
from taskqueue.archive.rows import ArchivedTask
from taskqueue.exact_json import decode_own
from taskqueue.logs import EventLog
from taskqueue.results.connection import StoreConnection
from taskqueue.results.postgresql import is_login, passes, run_on

log = EventLog("taskqueue.archive")

_T = TypeVar("_T")

#: Of one call, in seconds.
TIMEOUT_SECONDS = 10.0
#: Rows that one statement deletes.
_PORTION = 1000

# One parameter for all rows: what it takes to pass each value as a parameter of its own is what a
# row would mostly cost here.
_WRITE = """
INSERT INTO taskqueue_archive (
    uid, namespace, queue, name, handler, phase, reason, message, labels, attempts, history,
    worker, created_at, started_at, completed_at, result, result_ref, payload,
    submitted_by, cancelled_by, retry_of
)
SELECT
    uid, namespace, queue, name, handler, phase, reason, message, labels::jsonb, attempts,
    history::json, worker, created_at, started_at, completed_at, result::json, result_ref::json,
    payload::json, submitted_by, cancelled_by, retry_of
FROM json_to_recordset(%s::json) AS row (
    uid text, namespace text, queue text, name text, handler text, phase text, reason text,
    message text, labels text, attempts integer, history text, worker text,
    created_at timestamptz, started_at timestamptz, completed_at timestamptz,
    result text, result_ref text, payload text,
    submitted_by text, cancelled_by text, retry_of text
)
ON CONFLICT (uid) DO NOTHING
"""
_PRESENT = "SELECT uid FROM taskqueue_archive WHERE uid = ANY(%s)"
_DELETE = """
DELETE FROM taskqueue_archive WHERE uid IN (
    SELECT uid FROM taskqueue_archive
    WHERE namespace = %s AND queue = %s AND completed_at < %s
    LIMIT %s
)
"""
_READ = """
SELECT
    uid, namespace, queue, name, handler, phase, reason, message, labels::text, attempts,
    history::text, worker, created_at AS created, started_at AS started, completed_at AS completed,
    result::text, result_ref::text, payload::text, submitted_by, cancelled_by, retry_of
FROM taskqueue_archive AS archived
WHERE namespace = %(namespace)s
    AND (%(queue)s::text IS NULL OR queue = %(queue)s)
    AND (%(handler)s::text IS NULL OR handler = %(handler)s)
    AND (%(uid)s::text IS NULL OR uid = %(uid)s)
    AND (%(phases)s::text[] IS NULL OR phase = ANY(%(phases)s))
    AND (%(reason)s::text IS NULL OR reason = %(reason)s)
    AND labels @> %(labels)s::jsonb
    AND (%(since)s::timestamptz IS NULL OR completed_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR completed_at < %(until)s)
    AND (
        %(error_text)s::text IS NULL
        OR strpos(lower(message COLLATE "C"), lower(%(error_text)s::text COLLATE "C")) > 0
    )
    AND NOT EXISTS (
        SELECT FROM jsonb_array_elements(%(payload)s::jsonb) AS wanted
        WHERE archived.payload::jsonb
            #> ARRAY(SELECT jsonb_array_elements_text(wanted -> 'path'))
            IS DISTINCT FROM wanted -> 'value'
    )
    AND (
        %(after_time)s::timestamptz IS NULL
        OR (completed_at, uid) < (%(after_time)s, %(after_uid)s::text COLLATE "C")
    )
ORDER BY completed_at DESC, uid DESC
LIMIT %(rows)s
"""

#: Columns that are read as JSON text, and as times.
_JSON = ("labels", "history", "result", "result_ref", "payload")
_TIMES = ("created", "started", "completed")

#: A NUL in a string of JSON text; in none of PostgreSQL's texts there may be one.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
#: What stands for it.
_NUL_SYMBOL = "\u2400"


class Archive:
    """Writes and reads the rows; it connects when it is first used, and again when it must.

    It has one connection: calls wait for one another.

    Args:
        connection: where the database is: postgresql://.
        timeout: of each call, in seconds.
        may_create: whether to create the tables where they are missing, or are of an older version.
    """

    def __init__(
        self,
        connection: StoreConnection,
        *,
        timeout: float = TIMEOUT_SECONDS,
        may_create: bool = True,
    ) -> None:
        self._uri = connection.uri
        self._where = connection.where
        self._timeout = timeout
        self._may_create = may_create
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def write(self, tasks: Sequence[ArchivedTask]) -> None:
        """Write rows in one transaction; those that are there stay as they are.

        A row that the database refuses for what is in it is written without payload and result.

        Raises:
            ArchiveError: none of them may have been written.
        """

        async def write(connection: AsyncConnection) -> None:
            try:
                await connection.execute(_WRITE, (_encode(tasks),))
            except (errors.DataError, errors.IntegrityConstraintViolation):
                await _write_singly(connection, tasks)

        await self._call(write)

    async def missing(self, uids: Iterable[str]) -> set[str]:
        """Return which Tasks have no row.

        Raises:
            ArchiveError: the archive cannot be asked.
        """
        wanted = list(uids)

        async def read(connection: AsyncConnection) -> set[str]:
            cursor = await connection.execute(_PRESENT, (wanted,))
            return {uid for (uid,) in await cursor.fetchall()}

        return set(wanted) - await self._call(read)

    async def delete_before(self, namespace: str, queue: str, moment: datetime) -> int:
        """Delete the rows of a TaskQueue's Tasks that ended before; return how many.

        Raises:
            ArchiveError: some of them may be left.
        """

        async def delete(connection: AsyncConnection) -> int:
            cursor = await connection.execute(_DELETE, (namespace, queue, moment, _PORTION))
            return cursor.rowcount

        deleted, portion = 0, _PORTION
        while portion == _PORTION:
            portion = await self._call(delete)
            deleted += portion
        return deleted

    async def read(
        self, wanted: HistoryFilter, *, after: Place | None = None, rows: int
    ) -> list[ArchivedTask]:
        """Return the rows that a filter wants, the last that ended first.

        Args:
            wanted: which.
            after: where the page before has ended; None: from the beginning.
            rows: at most.

        Raises:
            ArchiveError: the archive cannot be asked.
        """
        parameters = {
            **wanted.parameters(),
            "after_time": None if after is None else after.completed,
            "after_uid": None if after is None else after.uid,
            "rows": rows,
        }

        async def read(connection: AsyncConnection) -> list[ArchivedTask]:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(_READ, parameters)
            return [_decode(row) for row in await cursor.fetchall()]

        return await self._call(read)

    async def close(self) -> None:
        """Close the connection; a call under way fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _call(self, call: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(self._timeout), self._turn:
                connection = self._connection
                if connection is not None:
                    try:
                        return await self._use(connection, call)
                    except psycopg.OperationalError:
                        pass  # perhaps the server was restarted since
                connection = await self._connect()
                return await self._use(connection, call)
        except TimeoutError as error:
            detail = f"no answer in {self._timeout:g} s"
            raise ArchiveError(ArchiveTrouble.UNAVAILABLE, self._where, detail) from error
        except (psycopg.Error, OSError, ValueError) as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            raise ArchiveError(trouble_of(error), self._where, detail) from error

    async def _connect(self) -> AsyncConnection:
        connection = await AsyncConnection.connect(
            self._uri,
            autocommit=True,
            connect_timeout=max(2, round(self._timeout)),
            # A pooler between them may give each statement another session; and what a filter
            # leaves out must be left out of the plan, too.
            prepare_threshold=None,
        )
        try:
            if self._may_create:
                await run_on(connection, migrate)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _use(
        self, connection: AsyncConnection, call: Callable[[AsyncConnection], Awaitable[_T]]
    ) -> _T:
        try:
            return await run_on(connection, call)
        except BaseException:
            if self._connection is connection:
                self._connection = None
            await connection.close()
            raise


def trouble_of(error: Exception) -> ArchiveTrouble:
    """Return what an error of psycopg, or of the way to the server, means."""
    if isinstance(error, errors.InsufficientPrivilege):
        return ArchiveTrouble.NOT_PERMITTED
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn):
        return ArchiveTrouble.NO_ARCHIVE
    if isinstance(error, psycopg.Error):
        code = error.sqlstate
        if code is None:  # not from the server: there was no connection, or it broke
            if is_login(error):
                return ArchiveTrouble.LOGIN_REFUSED
            if isinstance(error, psycopg.OperationalError):
                return ArchiveTrouble.UNAVAILABLE
        elif code[:2] in ("28", "3D"):
            return ArchiveTrouble.LOGIN_REFUSED
        elif passes(code):
            return ArchiveTrouble.UNAVAILABLE
    return ArchiveTrouble.UNAVAILABLE if isinstance(error, OSError) else ArchiveTrouble.FAILED


async def _write_singly(connection: AsyncConnection, tasks: Sequence[ArchivedTask]) -> None:
    async with connection.transaction():
        for task in tasks:
            for what in (_encode([task]), _encode([task], bare=True)):
                try:
                    async with connection.transaction():
                        await connection.execute(_WRITE, (what,))
                    break
                except (errors.DataError, errors.IntegrityConstraintViolation) as error:
                    log.error(
                        "archive.row_refused",
                        namespace=task.namespace,
                        task=task.name,
                        uid=task.uid,
                        error=str(error),
                    )


def _encode(tasks: Sequence[ArchivedTask], *, bare: bool = False) -> str:
    return orjson.dumps([_row(task, bare=bare) for task in tasks]).decode()


def _row(task: ArchivedTask, *, bare: bool) -> dict[str, Any]:
    return {
        "uid": task.uid,
        "namespace": task.namespace,
        "queue": task.queue,
        "name": _plain(task.name),
        "handler": _plain(task.handler),
        "phase": _plain(task.phase),
        "reason": _plain(task.reason),
        "message": _plain(task.message),
        "labels": _NUL.sub(_keep_backslashes, _json(dict(task.labels))),
        "attempts": task.attempts,
        "history": "[]" if bare else _json(list(task.history)),
        "worker": _plain(task.worker),
        "created_at": task.created,
        "started_at": task.started,
        "completed_at": task.completed,
        "result": None if task.result is None or bare else _json(task.result),
        "result_ref": None if task.result_ref is None else _json(task.result_ref),
        # It is searched as jsonb, which has no NUL.
        "payload": (
            None
            if task.payload is None or bare
            else _NUL.sub(_keep_backslashes, _json(task.payload))
        ),
        "submitted_by": _plain(task.submitted_by),
        "cancelled_by": _plain(task.cancelled_by),
        "retry_of": _plain(task.retry_of),
    }


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _keep_backslashes(found: re.Match[str]) -> str:
    return f"{found[1]}{_NUL_SYMBOL}"


def _plain(text: str) -> str:
    return text.replace("\0", _NUL_SYMBOL)


def _decode(row: dict[str, Any]) -> ArchivedTask:
    texts = {name: decode_own(row[name]) for name in _JSON if row[name] is not None}
    times = {name: row[name].astimezone(UTC) for name in _TIMES if row[name] is not None}
    return ArchivedTask(**{**row, **texts, **times, "history": tuple(texts["history"])})
