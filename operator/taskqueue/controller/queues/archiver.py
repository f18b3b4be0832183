"""Writes the ends of one TaskQueue's Tasks from their outbox to the archive.

Contract:

* An end leaves the outbox when the transaction with its row is committed. Whatever is killed in
  between, it comes again, and changes nothing.
* While the database is away nothing is read from the outbox, so nothing of it is in memory. Only
  this TaskQueue's outbox grows: each has its own channel, and nobody else waits.
* A batch is what has come within `LINGER_SECONDS`, at most `MOST_ROWS`: a commit costs as much as
  many rows do.
* Ends that are not in the outbox, for any reason, are found among the finished Tasks:
  `Backfill`.
* Rows above the retention are deleted from time to time, and not written again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.archive.errors import EXPLANATIONS, ArchiveError
from taskqueue.archive.rows import ArchivedTask, read_event
from taskqueue.contract.names import ContractError
from taskqueue.contract.outbox import ARCHIVE_OUTBOX
from taskqueue.controller.metrics import ARCHIVED
from taskqueue.controller.queues.backfill import Backfill
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.conditions.archive_connected import archive_connected
from taskqueue.controller.queues.conditions.sink_state import SinkState
from taskqueue.controller.queues.sink_loop import (
    OutboxConsumer,
    Restart,
    SinkLoop,
    first_of_group,
)
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable, read_secret
from taskqueue.logs import EventLog
from taskqueue.model.queue import ArchiveConfig, Condition, QueueConfig, QueueKey
from taskqueue.results.connection import StoreConnection, check_foreign, read_connection
from taskqueue.timestamps import Clock

if TYPE_CHECKING:
    from taskqueue.archive.archive import Archive

log = EventLog(__name__)

LINGER_SECONDS = 0.1
MOST_ROWS = 500
#: Ends in memory at most: without payloads they are small, with payloads up to 250 KiB each.
_PREFETCH, _PREFETCH_WITH_PAYLOADS = 2 * MOST_ROWS, 64
#: The Secret is read again this often, as it may name another database, and the database is asked
#: for a sign of life.
_CHECK_SECONDS = 30.0
#: From one look for rows above the retention to the next.
_RETENTION_SECONDS = 300.0
#: Longest pause between two tries, in seconds.
_LONGEST_PAUSE = 10.0


class Archiver:
    """Drains the outbox of one TaskQueue into its archive, while there is one.

    Args:
        key: (namespace, name) of the TaskQueue.
        client: for the API server.
        installation: in the outbox's name.
        backfill: finds ends that the archive does not have.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        client: ApiClient,
        installation: str,
        backfill: Backfill,
        clock: Clock,
    ) -> None:
        self.backfill = backfill
        self._key = key
        self._client = client
        self._outbox = ARCHIVE_OUTBOX.name(*key, installation)
        self._clock = clock
        self.loop = SinkLoop(
            "archive", key, serve=self._serve, explain=_explain, longest_pause=_LONGEST_PAUSE
        )

    def conditions(self, config: QueueConfig) -> tuple[Condition, ...]:
        """Return ArchiveConnected, if the TaskQueue has an archive."""
        backfill = self.backfill
        return archive_connected(
            config, self.loop.state, waiting=backfill.waiting, is_behind=backfill.is_behind
        )

    async def reconcile(self, config: ArchiveConfig | None, broker: BrokerSession) -> None:
        """Drain the outbox, if there is one.

        Args:
            config: what the TaskQueue asks for; None: no archive.
            broker: of the TaskQueue: has the outbox when it is declared.
        """
        self.backfill.waiting = broker.outbox_waiting(ARCHIVE_OUTBOX.sink)
        await self.loop.reconcile(config, broker.outbox_connection(ARCHIVE_OUTBOX.sink))

    async def close(self) -> None:
        """Stop; what is not acknowledged stays in the outbox."""
        await self.loop.close()

    async def _serve(
        self, config: ArchiveConfig, connection: Connection, on_up: Callable[[], None]
    ) -> None:
        """Write what is in the outbox, until something fails."""
        from taskqueue.archive.archive import Archive  # psycopg, where there is an archive

        address = await self._address(config)
        archive = Archive(address)
        try:
            await archive.missing(())  # connects
            self.loop.set_state(SinkState(True, "Connected"))
            on_up()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._drain(config, connection, archive))
                group.create_task(self._watch(config, address, archive))
                group.create_task(self._delete_old(config, archive))
                group.create_task(self.backfill.run(archive, config.retention_seconds))
        except ExceptionGroup as failed:
            raise first_of_group(failed) from None
        finally:
            await archive.close()

    async def _watch(
        self, config: ArchiveConfig, address: StoreConnection, archive: Archive
    ) -> None:
        """Notice another address in the Secret, and a database that is away while no Task ends."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            with contextlib.suppress(ApiError):
                if await self._address(config) != address:
                    raise Restart
            await archive.missing(())

    async def _address(self, config: ArchiveConfig) -> StoreConnection:
        namespace, name = self._key[0], config.secret
        secret = await read_secret(
            self._client,
            (namespace, name),
            where=f"Secret {namespace}/{name} (spec.archive.connectionSecret)",
            advice="create it with the key uri",
        )
        try:
            address = read_connection(secret.data, only="postgresql")
            check_foreign(address)
        except ValueError as error:
            raise SecretUnusable("SecretInvalid", f"{secret.where}: {error}") from None
        return address

    async def _delete_old(self, config: ArchiveConfig, archive: Archive) -> None:
        while config.retention_seconds is not None:
            deleted = await archive.delete_before(*self._key, self._oldest(config))
            if deleted:
                log.info("archive.rows_deleted", rows=deleted, **self._fields())
            await asyncio.sleep(min(_RETENTION_SECONDS, config.retention_seconds / 2))

    def _oldest(self, config: ArchiveConfig) -> datetime:
        """Return the time of the oldest end that is kept."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        if config.retention_seconds is None:
            return datetime.min.replace(tzinfo=UTC)
        return now - timedelta(seconds=config.retention_seconds)

    async def _drain(self, config: ArchiveConfig, connection: Connection, archive: Archive) -> None:
        prefetch = _PREFETCH_WITH_PAYLOADS if config.keep_payloads else _PREFETCH
        consumer = await OutboxConsumer.open(connection, self._outbox, prefetch=prefetch)
        try:
            while True:
                batch = await consumer.next_batch(MOST_ROWS, linger_seconds=LINGER_SECONDS)
                await self._write(batch, config, archive)
        finally:
            await consumer.close()

    async def _write(
        self, batch: Sequence[Delivery], config: ArchiveConfig, archive: Archive
    ) -> None:
        oldest = self._oldest(config)
        rows = [row for row in map(self._read, batch) if row is not None]
        rows = [row for row in rows if row.completed >= oldest]
        if rows:
            await archive.write(rows)
            ARCHIVED.inc(len(rows))
        batch[-1].channel.ack(batch[-1].delivery_tag, multiple=True)

    def _read(self, delivery: Delivery) -> ArchivedTask | None:
        """Return a row; None: there is none to write. Nobody but the operator should publish here.

        An event that cannot be read would block those behind it, and subscribers have it, too.
        """
        namespace, queue = self._key
        try:
            return read_event(delivery.body, namespace=namespace, queue=queue)
        except ContractError as error:
            log.error("archive.event_unreadable", error=str(error), **self._fields())
            return None

    def _fields(self) -> dict[str, Any]:
        return {"namespace": self._key[0], "queue": self._key[1]}


def _explain(problem: Exception) -> SinkState | None:
    if isinstance(problem, ArchiveError):
        return SinkState(False, problem.trouble, EXPLANATIONS[problem.trouble])
    if isinstance(problem, ImportError):
        text = f"the operator's image has no {problem.name}: install the extra results"
        return SinkState(False, "LibraryMissing", text)
    return None
