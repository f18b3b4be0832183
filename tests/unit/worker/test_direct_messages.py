"""Messages without a Task: their end is published before they leave the queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import orjson
import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.command import FIRST_COMMAND
from taskqueue.contract.outcome import EventKind
from taskqueue.worker.outcome import failure, raised
from taskqueue.worker.sdk import Fail, Snooze
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import RuntimeHarness, direct

pytestmark = pytest.mark.looptime


async def test_success_is_published_and_then_acknowledged() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct(), b'{"width": 3}')
    (execution,) = harness.executor.started
    assert execution.attempt.payload == {"width": 3}
    assert (execution.attempt.task, execution.attempt.uid) == ("shop/q", "order-7")
    execution.succeed(0.25, {"pages": 1})
    await turn()
    assert harness.channel.settled == []
    (published,) = harness.publisher.settle()
    event = published.event
    assert (published.exchange, published.key) == ("taskqueue.outcomes", "shop.q.task.succeeded")
    assert event.is_direct
    assert (event.correlation_id, event.id, event.uid, event.task) == ("order-7", "m-1", "", "q")
    assert (event.seconds, event.result, event.worker) == (0.25, {"pages": 1}, "pod-1")
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_what_comes_by_the_direct_exchange_is_direct_whatever_its_headers_say() -> None:
    harness = RuntimeHarness(direct_max_deliveries=1)
    forged = work("k.1", fence=2**63 - 1)
    harness.deliver(forged, exchange="taskqueue.direct")
    (execution,) = harness.executor.started
    assert (execution.attempt.fence, execution.attempt.task) == (None, "shop/q")
    assert not harness.runtime.running, "no attempt of a Task"
    execution.done(raised(ValueError("no"), 0.1))
    (published,) = harness.publisher.settle()
    event = published.event
    assert (event.token, event.uid, event.exchange) == ("", "", "taskqueue.direct")
    (letter,) = harness.publisher.settle()
    assert letter.exchange == "taskqueue.dead"
    assert letter.properties.headers["tq-exchange"] == "taskqueue.direct"


async def test_an_unconfirmed_end_keeps_the_message() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct())
    harness.executor.started[0].succeed()
    harness.publisher.settle(Settled.UNKNOWN, "lost")
    await asyncio.sleep(30)
    assert harness.channel.settled == []
    (again,) = harness.publisher.settle()
    assert again.event.id == "m-1", "the same end, published twice"
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_without_a_type_it_asks_for_the_default_handler() -> None:
    harness = RuntimeHarness()
    harness.deliver(BasicProperties(), b"plain text")
    attempt = harness.executor.started[0].attempt
    assert (attempt.handler, attempt.payload) == (None, {"text": "plain text"})


async def test_a_failure_is_rejected_and_the_last_one_published_and_dead_lettered() -> None:
    harness = RuntimeHarness(direct_max_deliveries=3)
    for deliveries in (0, 1):
        harness.deliver(direct(), deliveries=deliveries)
        harness.executor.started[-1].done(raised(ValueError("bad"), 0.1))
    assert harness.channel.settled == [("reject", 1, True), ("reject", 2, True)]
    assert harness.publisher.published == []
    harness.deliver(direct(), deliveries=2)
    assert harness.executor.started[-1].attempt.attempt == 3
    harness.executor.started[-1].done(raised(ValueError("bad"), 0.1))
    (published,) = harness.publisher.settle()
    assert (published.event.kind, published.event.attempt) == (EventKind.FAILED, 3)
    assert published.event.error is not None
    assert (published.event.error.type, published.event.error.message) == ("ValueError", "bad")
    (message,) = harness.publisher.settle()
    assert message.exchange == "taskqueue.dead"
    assert message.properties.headers["tq-error"] == "ValueError: bad"
    assert message.properties.correlation_id == "order-7"
    await turn()
    assert harness.channel.settled[2:] == [("ack", 3, False)]


async def test_it_is_dead_lettered_after_its_end_is_confirmed() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct())
    harness.executor.started[0].done(raised(Fail("never"), 0.1))
    assert [each.exchange for each in harness.publisher.settle()] == ["taskqueue.outcomes"]
    assert [each.exchange for each in harness.publisher.settle()] == ["taskqueue.dead"]


async def test_one_that_lost_its_workers_is_dead_lettered_unrun() -> None:
    harness = RuntimeHarness(direct_max_deliveries=3)
    harness.deliver(direct(), deliveries=3)
    assert harness.executor.started == []
    (published,) = harness.publisher.settle()
    assert published.event.error is not None
    assert (published.event.error.type, published.event.attempt) == ("WorkerLost", 3)
    (message,) = harness.publisher.settle()
    assert message.properties.headers["tq-error"].startswith("WorkerLost: ")


async def test_one_that_is_snoozed_fails_for_good() -> None:
    harness = RuntimeHarness(direct_max_deliveries=3)
    harness.deliver(direct())
    harness.executor.started[0].done(raised(Snooze(60), 0.1))
    (published,) = harness.publisher.settle()
    assert published.event.kind is EventKind.FAILED
    assert published.event.error is not None
    assert published.event.error.type == "NotSnoozed"
    (message,) = harness.publisher.settle()
    assert message.exchange == "taskqueue.dead"
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": NaN}',
        b'{"a": [1, 18446744073709551616]}',
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b"[" * 200 + b"]" * 200,
    ],
    ids=["nan", "65-bits", "deep", "list"],
)
async def test_json_that_cannot_be_read_exactly_is_parked_and_counted(body: bytes) -> None:
    harness = RuntimeHarness()
    harness.deliver(direct(), body)
    assert not harness.executor.started
    assert harness.runtime.parked == 0
    (published,) = harness.publisher.settle()
    assert (published.exchange, published.body) == ("taskqueue.dead", body)
    assert harness.runtime.parked == 1
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_a_reserved_type_has_its_prefix_while_the_operator_reads_it() -> None:
    harness = RuntimeHarness()
    sent = []
    older = replace(FIRST_COMMAND, understands=frozenset())
    for command in (None, older, FIRST_COMMAND, older):
        if command is not None:
            harness.runtime.on_command(command)
        harness.deliver(direct())
        harness.executor.started[-1].done(failure("InvalidResult", "no", 0.0, retryable=False))
        await turn()
        (event,) = harness.publisher.settle()
        sent.append(orjson.loads(event.body)["data"]["error"]["type"])
        (dead,) = harness.publisher.settle()
        assert dead.properties.headers["tq-error"] == "InvalidResult: no"
        await turn()
    assert sent == ["InvalidResult", "InvalidResult", "taskqueue.InvalidResult", "InvalidResult"]


async def test_batches_are_sent_while_the_operator_reads_them() -> None:
    harness = RuntimeHarness()
    assert not harness.outbox.batches
    harness.runtime.on_command(FIRST_COMMAND)
    assert harness.outbox.batches
    harness.runtime.on_command(replace(FIRST_COMMAND, understands=frozenset()))
    assert not harness.outbox.batches
