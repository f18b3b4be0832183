"""Reads the brokers' statistics: one reader for each endpoint, shared by its queues.

A reader asks every `POLL_SECONDS` for all queues of its virtual host at once, and stops with the
last TaskQueue that uses it. It keeps the last reading; the user decides how long that counts. A
failure is kept as text, logged when it begins and when it ends, and tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskqueue.amqp.parameters import ManagementEndpoint
from taskqueue.controller.queues.backlog import BacklogMeter
from taskqueue.direct.management_api import StatisticsClient, StatisticsUnreadable
from taskqueue.kubernetes.namespace_turns import RequestGate
from taskqueue.logs import EventLog
from taskqueue.model.queue_stats import QueueStats

log = EventLog(__name__)

#: Between the beginnings of two readings.
POLL_SECONDS = 5.0
#: Endpoints that are read at once: they are named by tenants, and may be slow.
READS_AT_ONCE = 8

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


@dataclass(frozen=True, slots=True)
class StatsReading:
    """The statistics that an endpoint returned, by broker queue, and when it was asked."""

    stats: Mapping[str, QueueStats]
    at: float


class StatisticsReader:
    """Reads one endpoint every `POLL_SECONDS`.

    Args:
        endpoint: where it is.
        client: asks it.
        turn: waits for the turn of a reading.

    Attributes:
        reading: the last one; None: none yet.
        error: why the last read failed; "": it did not.
    """

    def __init__(
        self,
        endpoint: ManagementEndpoint,
        client: StatisticsClient,
        turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._turn = turn
        self.endpoint = endpoint
        self.reading: StatsReading | None = None
        self.error = ""
        self._client = client

    async def run(self) -> None:
        """Read until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                async with self._turn():
                    began = loop.time()
                    await self._read(began)
                await asyncio.sleep(max(began + POLL_SECONDS - loop.time(), 0.1))
        finally:
            await self._client.close()

    async def _read(self, began: float) -> None:
        try:
            stats = await self._client.read()
        except StatisticsUnreadable as problem:
            self._on_failure(str(problem))
        except Exception as problem:  # a reader that ends would never be retried
            log.error("statistics.reader_failed", exc_info=problem, endpoint=self.endpoint.url)
            self._on_failure(f"the broker's statistics at {self.endpoint.url}: {problem!r}")
        else:
            if self.error:
                log.info("statistics.recovered", endpoint=self.endpoint.url)
            self.error = ""
            self.reading = StatsReading(stats, began)

    def _on_failure(self, error: str) -> None:
        if not self.error:
            log.warning("statistics.read_failed", endpoint=self.endpoint.url, error=error)
        self.error = error


class StatisticsReaders:
    """Makes the reader of an endpoint for its first user, and stops it after its last.

    At most `READS_AT_ONCE` readings are under way; the namespaces of the first users take turns.

    Args:
        spawn: runs a reader beside everything else.
        connect: makes the client of an endpoint.
    """

    def __init__(
        self,
        *,
        spawn: Spawn,
        connect: Callable[[ManagementEndpoint], StatisticsClient] = StatisticsClient,
    ) -> None:
        self._spawn = spawn
        self._connect = connect
        self._gate = RequestGate(READS_AT_ONCE)
        self._readers: dict[ManagementEndpoint, tuple[StatisticsReader, asyncio.Task[None]]] = {}
        self._users: dict[ManagementEndpoint, set[object]] = {}

    def acquire(
        self, endpoint: ManagementEndpoint, user: object, namespace: str = ""
    ) -> StatisticsReader:
        """Return the reader of an endpoint; the first user, of this namespace, starts it."""
        if endpoint not in self._readers:
            turn = partial(self._gate.turn, namespace)
            reader = StatisticsReader(endpoint, self._connect(endpoint), turn)
            task = self._spawn(reader.run(), f"statistics {endpoint.url}")
            self._readers[endpoint] = (reader, task)
        self._users.setdefault(endpoint, set()).add(user)
        return self._readers[endpoint][0]

    def release(self, endpoint: ManagementEndpoint, user: object) -> None:
        """Undo `acquire`; the last user stops the reader."""
        users = self._users.get(endpoint, set())
        users.discard(user)
        if not users and endpoint in self._readers:
            self._readers.pop(endpoint)[1].cancel()
            del self._users[endpoint]


class QueueStatistics:
    """Passes the statistics of one queue on to its meter.

    Args:
        queue: name of the broker's queue.
        namespace: of the TaskQueue.
        readers: gives the shared reader of an endpoint.
        meter: gets the statistics.
    """

    def __init__(
        self, queue: str, *, namespace: str = "", readers: StatisticsReaders, meter: BacklogMeter
    ) -> None:
        self._queue = queue
        self._namespace = namespace
        self._readers = readers
        self._meter = meter
        self._endpoint: ManagementEndpoint | None = None
        self._config_error = ""
        self._reader: StatisticsReader | None = None
        self._passed_on: StatsReading | None = None

    def set_endpoint(
        self, endpoint: ManagementEndpoint | None, config_error: str, now: float
    ) -> None:
        """Read this endpoint from now on.

        Args:
            endpoint: None: there is none, or it cannot be used.
            config_error: why it cannot be used; "" otherwise.
            now: the time.
        """
        if (endpoint, config_error) == (self._endpoint, self._config_error):
            return
        self.close()
        self._endpoint, self._config_error = endpoint, config_error
        if endpoint is not None:
            self._reader = self._readers.acquire(endpoint, self, self._namespace)
        expected = endpoint is not None or config_error
        self._meter.expect_statistics(now if expected else None)

    def close(self) -> None:
        """Stop reading."""
        if self._endpoint is not None:
            self._readers.release(self._endpoint, self)
        self._endpoint = self._reader = self._passed_on = None
        self._config_error = ""
        self._meter.expect_statistics(None)

    def update_meter(self) -> str:
        """Pass a new reading on, and return the text for missing statistics."""
        if self._reader is None:
            return self._config_error
        reading = self._reader.reading
        if reading is not None and reading is not self._passed_on:
            self._passed_on = reading
            stats = reading.stats.get(self._queue)
            if stats is not None:
                self._meter.set_statistics(stats, read_at=reading.at)
        return self._reader.error or (
            f"the broker's statistics at {self._reader.endpoint.url} do not include queue "
            f"{self._queue}: normal for some seconds after the broker has started; if it lasts, "
            "check that the broker keeps statistics (management_agent.disable_metrics_collector) "
            "and that the user may see the virtual host"
        )
