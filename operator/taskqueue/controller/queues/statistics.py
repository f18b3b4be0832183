"""The brokers' statistics as the operator reads them: one reader an endpoint, shared by its queues.

A reader asks every `POLL_SECONDS` for all queues of its virtual host at once, however many
TaskQueues use it, and stops with the last of them. It keeps the last reading; how long that counts
is decided where it is used. A failure is kept as text, logged when it begins and when it ends, and
tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from taskqueue.amqp.parameters import StatisticsEndpoint
from taskqueue.controller.queues.backlog import BacklogMeter
from taskqueue.direct.statistics import StatisticsClient, StatisticsUnreadable
from taskqueue.logs import EventLog
from taskqueue.model.queue_stats import QueueStats

log = EventLog(__name__)

#: Between the beginnings of two readings.
POLL_SECONDS = 5.0

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class StatisticsSource(Protocol):
    """What a reader needs of a `StatisticsClient`."""

    async def read(self) -> Mapping[str, QueueStats]:
        """Return the figures of the queues that have some."""

    async def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True, slots=True)
class StatsReading:
    """What an endpoint said when it was asked at this time, by the names of the broker's queues."""

    figures: Mapping[str, QueueStats]
    at: float


class StatisticsReader:
    """Reads one endpoint again and again; see the module's contract.

    Args:
        endpoint: where it is.
        client: asks it.

    Attributes:
        reading: the last; None: none yet.
        problem: why the last try failed; "": it did not.
    """

    def __init__(self, endpoint: StatisticsEndpoint, client: StatisticsSource) -> None:
        self.endpoint = endpoint
        self.reading: StatsReading | None = None
        self.problem = ""
        self._client = client

    async def run(self) -> None:
        """Read until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                await self._read(began)
                await asyncio.sleep(max(began + POLL_SECONDS - loop.time(), 0.1))
        finally:
            await self._client.close()

    async def _read(self, began: float) -> None:
        try:
            figures = await self._client.read()
        except StatisticsUnreadable as problem:
            self._failed(str(problem))
        except Exception as problem:  # a reader that ends would never be tried again
            log.error("statistics.failed", exc_info=problem, endpoint=self.endpoint.url)
            self._failed(f"the broker's statistics at {self.endpoint.url}: {problem!r}")
        else:
            if self.problem:
                log.info("statistics.readable", endpoint=self.endpoint.url)
            self.problem = ""
            self.reading = StatsReading(figures, began)

    def _failed(self, problem: str) -> None:
        if not self.problem:
            log.warning("statistics.unreadable", endpoint=self.endpoint.url, problem=problem)
        self.problem = problem


class Readers(Protocol):
    """What a queue needs of `StatisticsReaders`."""

    def join(self, endpoint: StatisticsEndpoint, user: object) -> StatisticsReader | None:
        """Return the reader of an endpoint; None: this operator reads no statistics."""

    def leave(self, endpoint: StatisticsEndpoint, user: object) -> None:
        """Undo `join`."""


class NoReaders:
    """Reads nothing."""

    def join(self, endpoint: StatisticsEndpoint, user: object) -> None:
        """Return that there is no reader."""

    def leave(self, endpoint: StatisticsEndpoint, user: object) -> None:
        """Do nothing."""


class StatisticsReaders:
    """The operator's readers: one for each endpoint; see the module's contract.

    Args:
        spawn: runs a reader beside everything else.
        connect: makes the client of an endpoint.
    """

    def __init__(
        self,
        *,
        spawn: Spawn,
        connect: Callable[[StatisticsEndpoint], StatisticsSource] = StatisticsClient,
    ) -> None:
        self._spawn = spawn
        self._connect = connect
        self._readers: dict[StatisticsEndpoint, tuple[StatisticsReader, asyncio.Task[None]]] = {}
        self._users: dict[StatisticsEndpoint, set[object]] = {}

    def join(self, endpoint: StatisticsEndpoint, user: object) -> StatisticsReader:
        """Return the reader of an endpoint, made if there is none."""
        if endpoint not in self._readers:
            reader = StatisticsReader(endpoint, self._connect(endpoint))
            task = self._spawn(reader.run(), f"statistics {endpoint.url}")
            self._readers[endpoint] = (reader, task)
        self._users.setdefault(endpoint, set()).add(user)
        return self._readers[endpoint][0]

    def leave(self, endpoint: StatisticsEndpoint, user: object) -> None:
        """Undo `join`; the last to leave stops the reader."""
        users = self._users.get(endpoint, set())
        users.discard(user)
        if not users and endpoint in self._readers:
            self._readers.pop(endpoint)[1].cancel()
            del self._users[endpoint]


class QueueStatistics:
    """What one queue has of the statistics of its broker.

    Args:
        queue: name of the broker's queue.
        readers: gives the shared reader of an endpoint.
        meter: told the figures.
    """

    def __init__(self, queue: str, *, readers: Readers, meter: BacklogMeter) -> None:
        self._queue = queue
        self._readers = readers
        self._meter = meter
        self._endpoint: StatisticsEndpoint | None = None
        self._mistake = ""
        self._reader: StatisticsReader | None = None
        self._taken: StatsReading | None = None

    def use(self, endpoint: StatisticsEndpoint | None, mistake: str, now: float) -> None:
        """Read this endpoint from now on.

        Args:
            endpoint: None: there is none, or it cannot be used.
            mistake: why it cannot be used; "" otherwise.
            now: the time.
        """
        if (endpoint, mistake) == (self._endpoint, self._mistake):
            return
        self.leave()
        self._endpoint, self._mistake = endpoint, mistake
        if endpoint is not None:
            self._reader = self._readers.join(endpoint, self)
        wanted = self._reader is not None or mistake
        self._meter.want_statistics(now if wanted else None)

    def leave(self) -> None:
        """Read nothing any more."""
        if self._endpoint is not None:
            self._readers.leave(self._endpoint, self)
        self._endpoint = self._reader = self._taken = None
        self._mistake = ""
        self._meter.want_statistics(None)

    def tell(self) -> str:
        """Tell the meter what is new, and return what the trouble is if it misses figures."""
        if self._reader is None:
            return self._mistake
        reading = self._reader.reading
        if reading is not None and reading is not self._taken:
            self._taken = reading
            figures = reading.figures.get(self._queue)
            if figures is not None:
                self._meter.told(figures, read_at=reading.at)
        return self._reader.problem or (
            f"the broker's statistics at {self._reader.endpoint.url} have no figures of queue "
            f"{self._queue}: usual for some seconds after the broker has started; if it lasts, "
            "look whether the broker keeps statistics (management_agent.disable_metrics_collector) "
            "and the user may see the virtual host"
        )
