"""What the engine makes of the feed's words, without any API server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from taskqueue.cluster.client import Access
from taskqueue.domain.task import Phase
from taskqueue.engine.entry import Stage
from taskqueue.engine.operator import PAYLOAD_LIMIT_BYTES, Engine, _never_ends
from tests.unit.engine.fakes import TOKENS


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"  # the discard port: nothing may be asked there
    engine = Engine(Access(configuration=configuration, ssl_context=None), TOKENS)
    yield engine
    for client in (engine._client, engine._writer_client, engine._feed_client):
        await client.close()


def raw_task(name: str = "t", *, generation: int = 1, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": f"uid-{name}",
            "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"queue": "q", "handler": "resize", "payload": {}, **spec},
        "status": {"phase": "Pending", "observedGeneration": -1},
    }


async def test_late_news_of_a_finished_task_is_not_taken_for_a_new_one(engine: Engine) -> None:
    engine.upserted(raw_task())
    entry = engine._entries.pop("uid-t")  # as the recorder does when the end is written
    engine._recorded(entry)
    engine.upserted(raw_task(generation=2))
    assert not engine._entries
    engine.gone(("shop", "t"), "uid-t")
    assert not engine._leaving


async def test_a_task_that_left_the_feed_before_its_end_was_told_is_not_waited_for(
    engine: Engine,
) -> None:
    engine.upserted(raw_task())
    entry = engine._entries["uid-t"]
    entry.stage = Stage.FINISHED
    engine.gone(("shop", "t"), "uid-t")
    del engine._entries["uid-t"]
    engine._recorded(entry)
    assert not engine._leaving


async def test_a_task_without_its_queue_is_blocked(engine: Engine) -> None:
    engine.upserted(raw_task())
    status = engine._entries["uid-t"].status
    assert (status.phase, status.reason) == (Phase.BLOCKED, "QueueNotFound")


async def test_a_task_nobody_can_read_stops_no_other(engine: Engine) -> None:
    broken = raw_task("broken")
    del broken["spec"]["handler"]
    engine.upserted(broken)
    engine.upserted(raw_task("good"))
    assert list(engine._entries) == ["uid-good"]


async def test_a_payload_above_the_limit_is_refused_and_not_held(engine: Engine) -> None:
    engine.upserted(raw_task(payload={"text": "x" * PAYLOAD_LIMIT_BYTES}))
    entry = engine._entries["uid-t"]
    assert (entry.status.phase, entry.status.reason) == (Phase.FAILED, "Invalid")
    assert len(entry.task.spec.payload) < 10


async def test_the_end_of_a_part_that_should_run_for_ever_is_an_error() -> None:
    async def end() -> None:
        raise OSError("boom")

    with pytest.raises(OSError, match="boom"):
        await _never_ends(asyncio.create_task(end()))
    with pytest.raises(RuntimeError, match="has ended"):
        await _never_ends(asyncio.create_task(asyncio.sleep(0), name="writer"))
