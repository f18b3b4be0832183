"""Writes the ends of one TaskQueue's Tasks from their outbox to the archive.

Contract:

* An end leaves the outbox when the transaction with its row is committed. Whatever is killed in
  between, it comes again, and changes nothing.
* While the database is away nothing is read from the outbox, so nothing of it is in memory. Only
  this TaskQueue's outbox grows: each has its own channel, and nobody else waits.
* A batch is what has come within `LINGER_SECONDS`, at most `MOST_ROWS`: a commit costs as much as
  many rows do.
* Ends that are not in the outbox, for any reason, are found among the finished Tasks:
  `ArchiveBackfill`.
* Rows above the retention are deleted from time to time, and not written again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.archive.errors import EXPLANATIONS, ArchiveError
from taskqueue.archive.rows import ArchivedTask, read_event
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.contract.names import ARCHIVE, ContractError, outbox_queue
from taskqueue.controller.metrics import ARCHIVED
from taskqueue.controller.queues.archive_backfill import ArchiveBackfill
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.conditions.archive_connected import (
    ArchiveState,
    archive_connected,
)
from taskqueue.controller.tasks.dispatcher import do_nothing
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


class _Changed(Exception):
    """The Secret names another database."""


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
        backfill: ArchiveBackfill,
        clock: Clock,
    ) -> None:
        #: Called when the condition is another one; set by whoever serves the TaskQueue.
        self.on_change: Callable[[], None] = do_nothing
        self.backfill = backfill
        self._key = key
        self._client = client
        self._outbox = outbox_queue(ARCHIVE, *key, installation)
        self._clock = clock
        self._state: ArchiveState | None = None
        #: What the loop that runs was started with.
        self._serves: tuple[ArchiveConfig | None, Connection | None] = (None, None)
        self._loop: asyncio.Task[None] | None = None

    def conditions(self, config: QueueConfig) -> tuple[Condition, ...]:
        """Return ArchiveConnected, if the TaskQueue has an archive."""
        backfill = self.backfill
        return archive_connected(
            config, self._state, waiting=backfill.waiting, is_behind=backfill.is_behind
        )

    async def reconcile(self, config: ArchiveConfig | None, broker: BrokerSession) -> None:
        """Drain the outbox, if there is one.

        Args:
            config: what the TaskQueue asks for; None: no archive.
            broker: of the TaskQueue: has the outbox when it is declared.
        """
        connection = broker.outbox_connection(ARCHIVE)
        self.backfill.waiting = broker.archive_waiting
        if config is None:
            self._state = None
        elif self._state is None:
            self._state = ArchiveState()
        if (config, connection) != self._serves:
            await self.close()
            self._serves = (config, connection)
            if config is not None and connection is not None:
                self._loop = asyncio.create_task(
                    self._run(config, connection), name=f"archive of {'/'.join(self._key)}"
                )

    async def close(self) -> None:
        """Stop; what is not acknowledged stays in the outbox."""
        loop, self._loop = self._loop, None
        self._serves = (None, None)
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    def _set_state(self, state: ArchiveState) -> None:
        if state != self._state and self._state is not None:
            self._state = state
            self.on_change()

    async def _run(self, config: ArchiveConfig, connection: Connection) -> None:
        backoff = Backoff(
            longest_seconds=_LONGEST_PAUSE,
            held_seconds=HELD_SECONDS,
            clock=asyncio.get_running_loop().time,
        )
        while True:
            try:
                await self._serve(config, connection, backoff.succeeded)
            except _Changed:
                continue
            except SecretUnusable as problem:
                self._set_state(ArchiveState(False, problem.reason, str(problem)))
            except ArchiveError as problem:
                explanation = EXPLANATIONS[problem.trouble]
                self._set_state(ArchiveState(False, problem.trouble, explanation))
                self._warn("archive.unavailable", problem)
            except ImportError as problem:
                text = f"the operator's image has no {problem.name}: install the extra results"
                self._set_state(ArchiveState(False, "LibraryMissing", text))
            except (ApiError, BrokerUnavailable, ChannelRefused) as problem:
                self._warn("archive.interrupted", problem)
            except Exception as problem:  # an archiver that ends would never be started again
                self._set_state(ArchiveState(False, "Failed", "the operator's log says why"))
                log.error("archive.failed", exc_info=problem, **self._fields())
            await asyncio.sleep(backoff.next_delay())

    async def _serve(
        self, config: ArchiveConfig, connection: Connection, on_up: Callable[[], None]
    ) -> None:
        """Write what is in the outbox, until something fails."""
        from taskqueue.archive.archive import Archive  # psycopg, where there is an archive

        address = await self._address(config)
        archive = Archive(address)
        try:
            await archive.missing(())  # connects
            self._set_state(ArchiveState(True, "Connected"))
            on_up()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._drain(config, connection, archive))
                group.create_task(self._watch(config, address, archive))
                group.create_task(self._delete_old(config, archive))
                group.create_task(self.backfill.run(archive, config))
        except ExceptionGroup as failed:
            raise _first(failed) from None
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
                    raise _Changed
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
        channel = await connection.channel()
        came: list[Delivery] = []
        wake = asyncio.Event()
        cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_delivery(delivery: Delivery) -> None:
            came.append(delivery)
            wake.set()

        def on_cancel(reason: str) -> None:
            if not cancelled.done():
                cancelled.set_result(reason)

        try:
            prefetch = _PREFETCH_WITH_PAYLOADS if config.keep_payloads else _PREFETCH
            await channel.set_prefetch(prefetch)
            await channel.consume(self._outbox, on_delivery, on_cancel)
            while not (channel.closed.done() or cancelled.done()):
                if not came:
                    wake.clear()
                    await _first_of(wake.wait(), channel.closed, cancelled)
                if len(came) < min(MOST_ROWS, prefetch):
                    await asyncio.sleep(LINGER_SECONDS)
                batch = came[:MOST_ROWS]
                del came[:MOST_ROWS]
                if batch:
                    await self._write(batch, config, archive)
            raise BrokerUnavailable(f"the consumer of queue {self._outbox} has ended")
        finally:
            await channel.close()

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

    def _warn(self, event: str, problem: Exception) -> None:
        log.warning(event, error=str(problem), **self._fields())

    def _fields(self) -> dict[str, Any]:
        return {"namespace": self._key[0], "queue": self._key[1]}


async def _first_of(event: Coroutine[Any, Any, Any], *futures: asyncio.Future[Any]) -> None:
    """Return when one of these is done."""
    waiting = asyncio.ensure_future(event)
    try:
        await asyncio.wait({waiting, *futures}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first exception of a group, which may have groups in it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
