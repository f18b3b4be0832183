"""Readers of brokers' statistics: shared, retried, and stopped after the last user."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest

from taskqueue.amqp.parameters import BrokerParameters, ManagementEndpoint
from taskqueue.controller.queues.backlog import BacklogMeter
from taskqueue.controller.queues.statistics import (
    POLL_SECONDS,
    QueueStatistics,
    StatisticsReader,
    StatisticsReaders,
)
from taskqueue.direct.management_api import StatisticsClient, StatisticsUnreadable
from taskqueue.model.queue_stats import QueueStats

pytestmark = pytest.mark.looptime

BROKER = BrokerParameters(host="rabbit", port=5672, username="u", password="p")


def endpoint(name: str = "one") -> ManagementEndpoint:
    return ManagementEndpoint(url=f"http://{name}", username="u", broker=BROKER)


class FakeClient(StatisticsClient):
    """Returns what the test sets, and counts."""

    def __init__(self, answer: Mapping[str, QueueStats] | Exception) -> None:
        self.answer = answer
        self.reads: list[float] = []
        self.closed = 0
        self.seconds = 0.0

    async def read(self) -> Mapping[str, QueueStats]:
        self.reads.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.closed += 1


class Case:
    """Readers of fake endpoints."""

    def __init__(self, answer: Mapping[str, QueueStats] | Exception | None = None) -> None:
        self.clients: dict[str, FakeClient] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.answer = {"q": QueueStats(1, 2)} if answer is None else answer
        self.readers = StatisticsReaders(spawn=self.spawn, connect=self.connect)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    def connect(self, endpoint: ManagementEndpoint) -> FakeClient:
        self.clients[endpoint.url] = FakeClient(self.answer)
        return self.clients[endpoint.url]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_queues_of_one_endpoint_share_one_reader_and_the_last_to_leave_stops_it() -> None:
    case = Case()
    users = [object() for _ in range(100)]
    assert len({id(case.readers.acquire(endpoint(), user)) for user in users}) == 1
    await asyncio.sleep(2 * POLL_SECONDS + 1)
    client = case.clients["http://one"]
    assert len(client.reads) == 3
    for user in users[1:]:
        case.readers.release(endpoint(), user)
    assert not case.tasks[0].cancelling()
    case.readers.release(endpoint(), users[0])
    await asyncio.wait(case.tasks)
    assert (case.tasks[0].cancelled(), client.closed) == (True, 1)


async def test_a_user_that_acquires_twice_releases_once() -> None:
    case = Case()
    user = object()
    case.readers.acquire(endpoint(), user)
    case.readers.acquire(endpoint(), user)
    case.readers.release(endpoint(), user)
    case.readers.release(endpoint(), user)
    await asyncio.wait(case.tasks)
    assert case.tasks[0].cancelled()


async def test_a_user_after_the_last_gets_a_new_reader() -> None:
    case = Case()
    first = case.readers.acquire(endpoint(), case)
    case.readers.release(endpoint(), case)
    assert case.readers.acquire(endpoint(), case) is not first
    await case.stop()


async def test_endpoints_are_read_apart() -> None:
    case = Case()
    case.readers.acquire(endpoint("one"), case)
    case.readers.acquire(endpoint("other"), case)
    await asyncio.sleep(1)
    assert [len(client.reads) for client in case.clients.values()] == [1, 1]
    await case.stop()


async def test_the_time_a_reading_takes_is_part_of_the_pause() -> None:
    client = FakeClient({})
    client.seconds = POLL_SECONDS / 2
    reader = StatisticsReader(endpoint(), client)
    task = asyncio.create_task(reader.run())
    await asyncio.sleep(2 * POLL_SECONDS - 1)
    assert reader.reading is not None
    assert reader.reading.at == client.reads[1]  # the statistics are of then, or before
    await asyncio.sleep(2)
    began = client.reads[0]
    assert client.reads == pytest.approx([began, began + POLL_SECONDS, began + 2 * POLL_SECONDS])
    task.cancel()


async def test_a_slow_endpoint_is_not_asked_twice_at_once_nor_without_a_pause() -> None:
    client = FakeClient({})
    client.seconds = 3 * POLL_SECONDS
    task = asyncio.create_task(StatisticsReader(endpoint(), client).run())
    await asyncio.sleep(10 * POLL_SECONDS)
    pauses = [after - before for before, after in zip(client.reads, client.reads[1:], strict=False)]
    assert all(pause > client.seconds for pause in pauses)
    task.cancel()


@pytest.mark.parametrize("problem", [StatisticsUnreadable("why"), RuntimeError("why")])
async def test_a_failure_keeps_the_last_reading_and_is_logged_once(
    problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = FakeClient({"q": QueueStats(1, 2)})
    reader = StatisticsReader(endpoint(), client)
    task = asyncio.create_task(reader.run())
    await asyncio.sleep(1)
    began = reader.reading
    assert began is not None
    assert began.stats == {"q": QueueStats(1, 2)}
    client.answer = problem
    await asyncio.sleep(3 * POLL_SECONDS)
    assert reader.reading is began
    assert "why" in reader.error
    client.answer = {}
    await asyncio.sleep(POLL_SECONDS)
    assert (reader.error, reader.reading.stats if reader.reading else None) == ("", {})
    events = [record.message for record in caplog.records]
    assert [events.count(f"statistics.{one}") for one in ("read_failed", "recovered")] == [1, 1]
    task.cancel()


# One queue's part.


def queue(case: Case, name: str = "q") -> tuple[QueueStatistics, BacklogMeter]:
    meter = BacklogMeter()
    return QueueStatistics(name, readers=case.readers, meter=meter), meter


def backlog(meter: BacklogMeter, now: float, error: str = "") -> tuple[int | None, str]:
    signal = meter.update_estimate(waiting=0, published=0, workers_foreign=0, now=now, error=error)
    return signal.backlog, signal.error


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_queue_uses_its_own_statistics() -> None:
    case = Case({"q": QueueStats(1, 2), "other": QueueStats(5, 5)})
    statistics, meter = queue(case)
    statistics.set_endpoint(endpoint(), "", now())
    await asyncio.sleep(1)
    statistics.update_meter()
    assert backlog(meter, now()) == (3, "")
    await case.stop()


async def test_a_reading_is_taken_once() -> None:
    """A second time it would be compared with what is published since then alone."""
    case = Case({"q": QueueStats(0, 5)})
    statistics, meter = queue(case)
    statistics.set_endpoint(endpoint(), "", now())
    await asyncio.sleep(1)
    statistics.update_meter()
    meter.observe_published(5, now())
    statistics.update_meter()
    signal = meter.update_estimate(waiting=0, published=5, workers_foreign=0, now=now(), error="")
    assert signal.backlog == 10
    await case.stop()


async def test_a_queue_that_the_endpoint_does_not_name_is_unknown_and_then_a_problem() -> None:
    case = Case({"q": QueueStats(0, 5)})
    statistics, meter = queue(case)
    statistics.set_endpoint(endpoint(), "", now())
    await asyncio.sleep(1)
    statistics.update_meter()
    case.clients["http://one"].answer = {}
    await asyncio.sleep(10)
    assert backlog(meter, now(), statistics.update_meter()) == (5, "")
    await asyncio.sleep(10)
    number, problem = backlog(meter, now(), statistics.update_meter())
    assert number == 0
    assert problem.startswith("the broker's statistics at http://one do not include queue q")
    await case.stop()


async def test_an_endpoint_that_cannot_be_read_is_a_problem_with_its_reason() -> None:
    case = Case(StatisticsUnreadable("refused"))
    statistics, meter = queue(case)
    statistics.set_endpoint(endpoint(), "", now())
    await asyncio.sleep(10)
    assert backlog(meter, now(), statistics.update_meter()) == (0, "")
    await asyncio.sleep(10)
    assert backlog(meter, now(), statistics.update_meter()) == (0, "refused")
    await case.stop()


async def test_a_key_that_cannot_be_used_is_a_problem() -> None:
    case = Case()
    statistics, meter = queue(case)
    statistics.set_endpoint(None, "key managementUri", now())
    await asyncio.sleep(20)
    assert backlog(meter, now(), statistics.update_meter()) == (0, "key managementUri")


async def test_without_an_endpoint_nothing_is_missed() -> None:
    case = Case()
    statistics, meter = queue(case)
    statistics.set_endpoint(None, "", now())
    await asyncio.sleep(60)
    assert backlog(meter, now(), statistics.update_meter()) == (0, "")
    assert case.clients == {}


async def test_the_same_endpoint_again_changes_nothing_and_another_starts_over() -> None:
    case = Case({"q": QueueStats(0, 5)})
    statistics, meter = queue(case)
    statistics.set_endpoint(endpoint(), "", now())
    await asyncio.sleep(1)
    statistics.update_meter()
    statistics.set_endpoint(endpoint(), "", now())
    assert backlog(meter, now()) == (5, "")
    statistics.set_endpoint(endpoint("other"), "", now())
    assert backlog(meter, now()) == (0, "")
    await asyncio.wait(case.tasks[:1])
    assert case.tasks[0].cancelled()
    await asyncio.sleep(1)
    statistics.update_meter()
    assert backlog(meter, now()) == (5, "")
    statistics.close()
    await asyncio.wait(case.tasks)
    assert backlog(meter, now()) == (0, "")
