"""Attempts whose workers say nothing any more."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.command import CommandKind
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TOKENS, Engine, turn

pytestmark = pytest.mark.looptime


async def test_an_attempt_without_a_word_fails_ten_seconds_after_its_time_is_up() -> None:
    engine = Engine(attempt_timeout_seconds=20)
    entry = await engine.published()
    for _ in range(31):
        engine.dispatcher.on_ready_count(0, reporting=True)
        assert entry.stage is TaskStage.PUBLISHED
        await asyncio.sleep(1)
    engine.dispatcher.on_ready_count(0, reporting=True)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Retrying", "Timeout")
    assert (write.status["epoch"], write.urgent) == (1, True)
    assert not engine.publisher.orders
    write.succeed()
    (order,) = engine.publisher.orders
    assert (order.kind, order.token) == (CommandKind.CANCEL, TOKENS.sign("uid-t", 1, 0))
    engine.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.RETRYING


async def test_the_last_attempt_that_is_silent_ends_the_task() -> None:
    engine = Engine(attempt_timeout_seconds=20, max_attempts=1)
    await engine.published()
    engine.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(31)
    engine.dispatcher.on_ready_count(0, reporting=True)
    assert engine.writer.phases == ["Failed"]
    assert len(engine.publisher.orders) == 1


async def silent_after(engine: Engine, seconds: float) -> bool:
    await asyncio.sleep(seconds)
    engine.dispatcher.on_ready_count(0, reporting=True)
    return bool(engine.writer.phases)


async def test_only_what_no_longer_waits_in_the_broker_is_with_a_worker() -> None:
    engine = Engine(attempt_timeout_seconds=20)
    entries = [engine.add(name) for name in "abc"]
    engine.open()
    await turn()
    engine.publisher.settle(Settled.CONFIRMED)
    engine.dispatcher.on_ready_count(2, reporting=True)
    assert [entry.delivered_at is not None for entry in entries] == [True, False, False]
    engine.dispatcher.on_ready_count(5, reporting=True)  # it came back, or others publish too
    assert [entry.delivered_at for entry in entries] == [None] * 3


async def test_what_is_not_confirmed_is_with_nobody() -> None:
    engine = Engine(attempt_timeout_seconds=20)
    engine.add("t")
    engine.open()
    await turn()
    engine.dispatcher.on_ready_count(0, reporting=True)
    assert not await silent_after(engine, 100)


async def test_the_clock_goes_from_the_start_where_that_is_known() -> None:
    engine = Engine(attempt_timeout_seconds=20)
    entry = await engine.published()
    engine.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(25)
    engine.event(entry, EventKind.STARTED)
    await asyncio.sleep(2)
    engine.writer.writes.pop()
    assert not await silent_after(engine, 27)
    assert await silent_after(engine, 1)


@pytest.mark.parametrize("how", ["a new connection", "a broker that blocks"])
async def test_who_could_not_report_gets_the_whole_time_again(how: str) -> None:
    engine = Engine(attempt_timeout_seconds=20)
    await engine.published()
    engine.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(25)
    if how == "a new connection":
        engine.dispatcher.close()
        engine.open()
    else:
        engine.dispatcher.on_ready_count(0, reporting=False)
    engine.dispatcher.on_ready_count(0, reporting=True)
    assert not await silent_after(engine, 29)
    assert await silent_after(engine, 2)
