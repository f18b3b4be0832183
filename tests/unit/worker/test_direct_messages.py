"""Messages without a Task: run, told of when they end for good, and only then gone."""

from __future__ import annotations

import asyncio

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.worker.outcome import raised
from taskqueue.worker.sdk import Fail
from tests.unit.worker.fakes import turn
from tests.unit.worker.harness import RuntimeHarness, direct

pytestmark = pytest.mark.looptime


async def test_success_is_told_and_then_acknowledged() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct(), b'{"width": 3}')
    (execution,) = harness.executor.started
    assert execution.attempt.payload == {"width": 3}
    assert (execution.attempt.task, execution.attempt.uid) == ("shop/q", "order-7")
    execution.succeed(0.25, {"pages": 1})
    await turn()
    assert harness.channel.settled == []
    (told,) = harness.publisher.settle()
    event = told.event
    assert (told.exchange, told.key) == ("taskqueue.outcomes", "shop.q.task.succeeded")
    assert event.is_direct
    assert (event.correlation_id, event.id, event.uid, event.task) == ("order-7", "m-1", "", "q")
    assert (event.seconds, event.result, event.worker) == (0.25, {"pages": 1}, "pod-1")
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_an_unconfirmed_end_keeps_the_message() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct())
    harness.executor.started[0].succeed()
    harness.publisher.settle(Settled.UNKNOWN, "lost")
    await asyncio.sleep(30)
    assert harness.channel.settled == []
    (again,) = harness.publisher.settle()
    assert again.event.id == "m-1", "the same end, told twice"
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_without_a_type_it_asks_for_the_default_handler() -> None:
    harness = RuntimeHarness()
    harness.deliver(BasicProperties(), b"plain text")
    attempt = harness.executor.started[0].attempt
    assert (attempt.handler, attempt.payload) == (None, {"text": "plain text"})


async def test_a_failure_goes_back_untold_and_the_last_one_is_told_and_buried() -> None:
    harness = RuntimeHarness(direct_max_deliveries=3)
    for deliveries in (0, 1):
        harness.deliver(direct(), deliveries=deliveries)
        harness.executor.started[-1].done(raised(ValueError("bad"), 0.1))
    assert harness.channel.settled == [("reject", 1, True), ("reject", 2, True)]
    assert harness.publisher.published == []
    harness.deliver(direct(), deliveries=2)
    assert harness.executor.started[-1].attempt.attempt == 3
    harness.executor.started[-1].done(raised(ValueError("bad"), 0.1))
    (told,) = harness.publisher.settle()
    assert (told.event.kind, told.event.attempt) == (EventKind.FAILED, 3)
    assert told.event.error is not None
    assert (told.event.error.type, told.event.error.message) == ("ValueError", "bad")
    (letter,) = harness.publisher.settle()
    assert letter.exchange == "taskqueue.dead"
    assert letter.properties.headers["tq-error"] == "ValueError: bad"
    assert letter.properties.correlation_id == "order-7"
    await turn()
    assert harness.channel.settled[2:] == [("ack", 3, False)]


async def test_it_is_not_buried_before_its_end_is_told() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct())
    harness.executor.started[0].done(raised(Fail("never"), 0.1))
    assert [each.exchange for each in harness.publisher.settle()] == ["taskqueue.outcomes"]
    assert [each.exchange for each in harness.publisher.settle()] == ["taskqueue.dead"]


async def test_one_that_lost_its_workers_is_buried_unrun() -> None:
    harness = RuntimeHarness(direct_max_deliveries=3)
    harness.deliver(direct(), deliveries=3)
    assert harness.executor.started == []
    (told,) = harness.publisher.settle()
    assert told.event.error is not None
    assert (told.event.error.type, told.event.attempt) == ("WorkerLost", 3)
    (letter,) = harness.publisher.settle()
    assert letter.properties.headers["tq-error"].startswith("WorkerLost: ")
