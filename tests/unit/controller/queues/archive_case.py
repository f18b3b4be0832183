"""An archiver between stand-ins for its broker, its database and its API server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.properties import BasicProperties
from taskqueue.archive import archive
from taskqueue.archive.errors import ArchiveError, ArchiveTrouble
from taskqueue.archive.rows import ArchivedTask
from taskqueue.controller.queues.archiver import Archiver
from taskqueue.controller.queues.backfill import Backfill
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import ArchiveConfig, Condition, QueueConfig
from taskqueue.results.connection import StoreConnection

KEY = ("shop", "q")
ARCHIVE = ArchiveConfig(secret="archive")
CONFIG = QueueConfig(namespace="shop", name="q", uid="u", generation=1, archive=ARCHIVE)
URI = "postgresql://user:secret@database/one"


class FakeChannel:
    """Gives what is in the queue, again after it was closed unacknowledged."""

    def __init__(self, queue: FakeOutbox) -> None:
        self._queue = queue
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.is_open = True

    async def set_prefetch(self, count: int) -> None:
        self._queue.prefetch = count

    async def consume(
        self, queue: str, on_delivery: Callable[[Delivery], None], on_cancel: Callable[[str], None]
    ) -> str:
        self._queue.names.append(queue)
        self._queue.consumer = self, on_delivery
        self.on_cancel = on_cancel
        self._queue.deliver()
        return "tag"

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        assert multiple
        self._queue.on_acknowledged(self, tag)

    async def close(self) -> None:
        self._queue.on_closed(self)
        if not self.closed.done():
            self.closed.set_result((0, "closed"))


class FakeOutbox:
    """A queue that keeps each message until it is acknowledged."""

    def __init__(self) -> None:
        self.ready: list[bytes] = []
        self.unacknowledged: dict[int, bytes] = {}
        self.consumer: tuple[FakeChannel, Callable[[Delivery], None]] | None = None
        self.names: list[str] = []
        self.prefetch = 0
        self.most = 0
        self._tag = 0

    async def channel(self) -> FakeChannel:
        return FakeChannel(self)

    def publish(self, body: bytes) -> None:
        self.ready.append(body)
        self.deliver()

    def deliver(self) -> None:
        while self.consumer and self.ready and len(self.unacknowledged) < self.prefetch:
            channel, on_delivery = self.consumer
            self._tag += 1
            body = self.ready.pop(0)
            self.unacknowledged[self._tag] = body
            self.most = max(self.most, len(self.unacknowledged))
            on_delivery(
                Delivery(
                    cast(Channel, channel), self._tag, False, "e", "k", BasicProperties(), body
                )
            )

    def on_acknowledged(self, channel: FakeChannel, tag: int) -> None:
        assert self.consumer
        assert self.consumer[0] is channel
        for one in [one for one in self.unacknowledged if one <= tag]:
            del self.unacknowledged[one]
        self.deliver()

    def on_closed(self, channel: FakeChannel) -> None:
        if self.consumer and self.consumer[0] is channel:
            self.consumer = None
            self.ready[:0] = self.unacknowledged.values()
            self.unacknowledged.clear()


class FakeArchive:
    """Keeps rows in memory; ``trouble`` is raised by each call."""

    def __init__(self) -> None:
        self.rows: dict[str, ArchivedTask] = {}
        self.batches: list[int] = []
        self.trouble: ArchiveTrouble | None = None
        self.opened: list[str] = []
        self.closed = 0
        self.deleted: list[datetime] = []
        self.writing = asyncio.Event()
        self.writing.set()

    def _check(self) -> None:
        if self.trouble is not None:
            raise ArchiveError(self.trouble, "postgresql://database", "FATAL: the server's words")

    async def write(self, tasks: Sequence[ArchivedTask]) -> None:
        await self.writing.wait()
        self._check()
        self.batches.append(len(tasks))
        for task in tasks:
            self.rows.setdefault(task.uid, task)

    async def missing(self, uids: Iterable[str]) -> set[str]:
        self._check()
        return set(uids) - self.rows.keys()

    async def delete_before(self, namespace: str, queue: str, moment: datetime) -> int:
        self._check()
        self.deleted.append(moment)
        return 0

    async def close(self) -> None:
        self.closed += 1


class FakeApi:
    """Has the Secret, or raises."""

    def __init__(self) -> None:
        self.secret: dict[str, str] | ApiError = {"uri": URI}

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        assert path == "/api/v1/namespaces/shop/secrets/archive"
        if isinstance(self.secret, ApiError):
            raise self.secret
        data = {
            key: base64.b64encode(value.encode()).decode() for key, value in self.secret.items()
        }
        return {"data": data}


class FakeSession:
    """Says whether the outbox is declared, and what waits in it."""

    def __init__(self, outbox: FakeOutbox) -> None:
        self.outbox: FakeOutbox | None = outbox

    def outbox_connection(self, sink: str) -> FakeOutbox | None:
        assert sink == "archive"
        return self.outbox

    def outbox_waiting(self, sink: str) -> int | None:
        assert sink == "archive"
        return 0


class Case:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outbox, self.archive, self.api = FakeOutbox(), FakeArchive(), FakeApi()
        self.session = FakeSession(self.outbox)
        self.changes = 0
        self.now = 1_700_000_000.0

        def open_archive(connection: StoreConnection) -> FakeArchive:
            self.archive.opened.append(connection.uri)
            return self.archive

        monkeypatch.setattr(archive, "Archive", open_archive)
        self.backfill = FakeBackfill()
        self.archiver = Archiver(
            KEY,
            client=cast(ApiClient, self.api),
            installation="team-a",
            backfill=cast(Backfill, self.backfill),
            clock=lambda: self.now,
        )
        self.archiver.loop.on_change = self._on_change

    def _on_change(self) -> None:
        self.changes += 1

    async def reconcile(self, config: ArchiveConfig | None = ARCHIVE) -> None:
        await self.archiver.reconcile(config, cast(BrokerSession, self.session))

    @property
    def condition(self) -> Condition:
        (condition,) = self.archiver.conditions(CONFIG)
        return condition


class FakeBackfill:
    """Has nothing to look for."""

    def __init__(self) -> None:
        self.is_behind = False
        self.waiting: int | None = None
        self.runs = 0

    async def run(self, archive: object, retention_seconds: int | None) -> None:
        self.runs += 1
        await asyncio.Event().wait()
