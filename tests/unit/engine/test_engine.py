"""What the engine makes of the feed's words, without any API server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client import Configuration

from taskqueue.cluster.client import Access
from taskqueue.domain.task import Phase
from taskqueue.engine.entry import Stage
from taskqueue.engine.operator import Engine, _never_ends
from taskqueue.engine.tasks import PAYLOAD_LIMIT_BYTES
from tests.unit.engine.fakes import TOKENS, raw_task


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"  # the discard port: nothing may be asked there
    engine = Engine(Access(configuration=configuration, ssl_context=None), TOKENS)
    yield engine
    for client in (engine._client, engine._writer_client, engine._feed_client):
        await client.close()


async def test_late_news_of_a_finished_task_is_not_taken_for_a_new_one(engine: Engine) -> None:
    engine.tasks.upserted(raw_task())
    entry = engine.tasks._entries.pop("uid-t")  # as the recorder does when the end is written
    engine.tasks._recorded(entry)
    engine.tasks.upserted(raw_task(generation=2))
    assert not engine.tasks._entries
    engine.tasks.gone(("shop", "t"), "uid-t")
    assert not engine.tasks._leaving


async def test_a_task_that_left_the_feed_before_its_end_was_told_is_not_waited_for(
    engine: Engine,
) -> None:
    engine.tasks.upserted(raw_task())
    entry = engine.tasks._entries["uid-t"]
    entry.stage = Stage.FINISHED
    engine.tasks.gone(("shop", "t"), "uid-t")
    del engine.tasks._entries["uid-t"]
    engine.tasks._recorded(entry)
    assert not engine.tasks._leaving


async def test_a_task_without_its_queue_is_blocked(engine: Engine) -> None:
    engine.tasks.upserted(raw_task())
    status = engine.tasks._entries["uid-t"].status
    assert (status.phase, status.reason) == (Phase.BLOCKED, "QueueNotFound")


async def test_a_task_nobody_can_read_stops_no_other(engine: Engine) -> None:
    broken = raw_task("broken")
    del broken["spec"]["handler"]
    engine.tasks.upserted(broken)
    engine.tasks.upserted(raw_task("good"))
    assert list(engine.tasks._entries) == ["uid-good"]


async def test_a_payload_above_the_limit_is_refused_and_not_held(engine: Engine) -> None:
    engine.tasks.upserted(raw_task(payload={"text": "x" * PAYLOAD_LIMIT_BYTES}))
    entry = engine.tasks._entries["uid-t"]
    assert (entry.status.phase, entry.status.reason) == (Phase.FAILED, "Invalid")
    assert len(entry.task.spec.payload) < 10


async def test_the_end_of_a_part_that_should_run_for_ever_is_an_error() -> None:
    async def end() -> None:
        raise OSError("boom")

    with pytest.raises(OSError, match="boom"):
        await _never_ends(asyncio.create_task(end()))
    with pytest.raises(RuntimeError, match="has ended"):
        await _never_ends(asyncio.create_task(asyncio.sleep(0), name="writer"))
