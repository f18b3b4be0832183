"""The tables of the archive, as an ordered list of changes to a database.

A change that was released is never edited: what should be otherwise is another change, behind it.
Each only adds, so that an older operator goes on with what a newer one has made of the table. The
table `taskqueue_archive_migrations` records which a database has. They are made in one transaction
under a lock, so any number of processes may start at once, and be killed meanwhile.
"""

from __future__ import annotations

from typing import LiteralString

from psycopg import AsyncConnection, errors

MIGRATIONS: tuple[LiteralString, ...] = (
    # Results and payloads are json: jsonb makes other numbers of some. The collation "C" sorts
    # by code points on every machine: pages follow one another by uid.
    """
    CREATE TABLE taskqueue_archive (
        uid text COLLATE "C" PRIMARY KEY,
        namespace text COLLATE "C" NOT NULL,
        queue text COLLATE "C" NOT NULL,
        name text NOT NULL,
        handler text NOT NULL,
        phase text NOT NULL,
        reason text NOT NULL,
        message text NOT NULL,
        labels jsonb NOT NULL,
        attempts integer NOT NULL,
        history json NOT NULL,
        worker text NOT NULL,
        created_at timestamptz,
        started_at timestamptz,
        completed_at timestamptz NOT NULL,
        archived_at timestamptz NOT NULL DEFAULT now(),
        result json,
        result_ref json,
        payload json,
        submitted_by text NOT NULL,
        cancelled_by text NOT NULL,
        retry_of text NOT NULL
    )
    """,
    """
    CREATE INDEX taskqueue_archive_by_time
        ON taskqueue_archive (namespace, queue, completed_at, uid)
    """,
)

#: Any number that is only ours.
_LOCK = "SELECT pg_advisory_xact_lock(7451398226650118)"
_CREATE = """
CREATE TABLE IF NOT EXISTS taskqueue_archive_migrations (
    number integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_LAST = "SELECT coalesce(max(number), 0) FROM taskqueue_archive_migrations"
_RECORD = "INSERT INTO taskqueue_archive_migrations (number) VALUES (%s)"


async def migrate(connection: AsyncConnection) -> None:
    """Make the changes that a database does not have; the connection commits by itself.

    Raises:
        psycopg.Error: the database does not allow it, or the connection is lost.
    """
    try:
        if await _last(connection) >= len(MIGRATIONS):
            return
    except errors.UndefinedTable:
        pass
    async with connection.transaction():
        await connection.execute(_LOCK)
        await connection.execute(_CREATE)
        done = await _last(connection)
        for number, change in enumerate(MIGRATIONS[done:], done + 1):
            await connection.execute(change)
            await connection.execute(_RECORD, (number,))


async def _last(connection: AsyncConnection) -> int:
    row = await (await connection.execute(_LAST)).fetchone()
    return 0 if row is None else int(row[0])
