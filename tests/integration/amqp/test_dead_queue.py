"""Letters of a dead queue are looked at, redriven and purged, on a real broker."""

from __future__ import annotations

import asyncio
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pika.spec import BasicProperties

import taskqueue
from taskqueue.amqp.channel import Channel
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.names import DEAD_EXCHANGE, INBOX_QUEUE, dead_queue, work_queue
from taskqueue.contract.topology import (
    declare_operator_topology,
    declare_task_queue,
    ready_messages,
)
from taskqueue.direct.dead_letters import (
    DeadLetterKind,
    NoDeadQueue,
    count,
    purge,
    read_dead_letters,
    redrive,
)
from tests.integration.amqp.messages import PATIENCE, Collector

pytestmark = pytest.mark.broker

QUEUE = ("shop", "images")
KEY = "shop.images"
WORK, DEAD = work_queue(*QUEUE), dead_queue(*QUEUE)
PACKAGE_ROOT = Path(taskqueue.__file__).parents[1]
TASK = {"tq-token": "k1.abc", "tq-namespace": "shop", "tq-task": "resize-1"}


class Bench:
    """The dead queue of a TaskQueue, and what puts letters into it."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self.connection = connection
        self._publisher = publisher

    async def letter(
        self, body: str, *, headers: dict[str, Any] | None = None, **properties: Any
    ) -> str:
        """Publish what a worker gives up; return its id."""
        message_id = uuid.uuid4().hex
        told = await self._publisher.publish_and_wait(
            DEAD_EXCHANGE,
            KEY,
            body.encode(),
            BasicProperties(
                message_id=message_id,
                delivery_mode=2,
                headers={"tq-error": f"ValueError: {body}", **(headers or {})},
                **properties,
            ),
        )
        assert told == (Settled.CONFIRMED, "")
        return message_id

    async def ready(self, queue: str, expected: int) -> None:
        """Wait until a queue has so many messages ready: what a channel held comes back later."""
        channel = await self.connection.channel()
        async with asyncio.timeout(PATIENCE):
            while await ready_messages(channel, queue) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await channel.close()

    async def bodies(self) -> list[str]:
        """Return the dead letters as they stand."""
        found = await read_dead_letters(self.connection, *QUEUE, body_bytes=100)
        await self.ready(DEAD, found.total)
        return [message.body_start.decode() for message in found.messages]


@pytest.fixture
async def bench(connection: Connection) -> Bench:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, *QUEUE)
    return Bench(connection, await Publisher.open(connection))


async def test_letters_are_told_apart_and_stay_in_their_order(bench: Bench) -> None:
    first = await bench.letter("one", type="resize", correlation_id="c-1", timestamp=1_700_000_000)
    await bench.letter("two", headers=TASK, type="resize", correlation_id="uid")
    await bench.letter("three", content_type="application/cloudevents+json")
    await bench.letter("four", headers={"tq-exchange": "taskqueue.outcomes"})
    found = await read_dead_letters(bench.connection, *QUEUE, body_bytes=100)
    assert found.total == 4
    one, two, three, four = found.messages
    assert (one.id, one.kind, one.handler) == (first, DeadLetterKind.DIRECT, "resize")
    assert (one.died, one.size, one.body_start) == (1_700_000_000.0, 3, b"one")
    assert (one.task, one.correlation_id, one.reason) == ("", "c-1", "ValueError: one")
    assert (two.kind, two.task) == (DeadLetterKind.TASK, "shop/resize-1")
    assert {three.kind, four.kind} == {DeadLetterKind.OUTCOME}
    await bench.ready(DEAD, 4)
    for _ in range(5):  # and are not used up, nor turned round, by being looked at
        assert await bench.bodies() == ["one", "two", "three", "four"]


async def test_what_the_broker_gave_up_says_when_and_why(bench: Bench, channel: Channel) -> None:
    channel.publish("", WORK, b"poison", BasicProperties(delivery_mode=2))
    worker = Collector()
    await worker.start(channel, WORK)
    (delivery,) = await worker.wait(1)
    channel.reject(delivery.delivery_tag, requeue=False)
    await bench.ready(DEAD, 1)
    (letter,) = (await read_dead_letters(bench.connection, *QUEUE, body_bytes=100)).messages
    assert letter.reason == f"rejected by the broker, queue {WORK}"
    assert letter.died is not None
    assert letter.id == ""


async def test_direct_messages_are_redriven_as_they_once_were(
    bench: Bench, channel: Channel
) -> None:
    await bench.letter(
        '{"a": 1}',
        headers={"x-death": [], "x-mine": "1", "tenant": "t", "traceparent": "00-1"},
        type="resize",
        correlation_id="c-1",
        content_type="application/json",
    )
    await bench.letter("of a Task", headers=TASK)
    told = await redrive(bench.connection, *QUEUE)
    assert (told.redriven, told.kept_tasks, told.refused) == (1, 1, [])
    worker = Collector()
    await worker.start(channel, WORK)
    (copy,) = await worker.wait(1)
    assert (copy.exchange, copy.routing_key) == ("taskqueue.direct", KEY)
    assert copy.body == b'{"a": 1}'
    properties = copy.properties
    assert properties.headers == {"tenant": "t", "traceparent": "00-1"}
    assert (properties.type, properties.correlation_id) == ("resize", "c-1")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    await bench.ready(DEAD, 1)
    assert await bench.bodies() == ["of a Task"]


async def test_what_was_never_work_is_not_made_work(bench: Bench) -> None:
    await bench.letter("no outcome", headers={"tq-exchange": "taskqueue.outcomes"})
    told = await redrive(bench.connection, *QUEUE)
    assert (told.redriven, told.kept_outcomes) == (0, 1)
    await bench.ready(WORK, 0)


async def test_single_letters_are_redriven_by_their_ids(bench: Bench) -> None:
    ids = [await bench.letter(body) for body in ("one", "two", "three")]
    told = await redrive(bench.connection, *QUEUE, ids=frozenset({ids[1], "nobody"}))
    assert (told.redriven, told.not_chosen, told.not_found) == (1, 2, ("nobody",))
    await bench.ready(DEAD, 2)
    assert await bench.bodies() == ["one", "three"]


async def test_no_more_are_redriven_than_asked_for(bench: Bench) -> None:
    for body in ("one", "two", "three"):
        await bench.letter(body)
    told = await redrive(bench.connection, *QUEUE, limit=2)
    assert (told.redriven, told.not_chosen) == (2, 1)
    await bench.ready(WORK, 2)
    await bench.ready(DEAD, 1)
    assert await bench.bodies() == ["three"]


async def test_a_letter_without_a_work_queue_stays(bench: Bench, channel: Channel) -> None:
    await bench.letter("one")
    await channel.delete_queue(WORK)
    told = await redrive(bench.connection, *QUEUE)
    assert told.redriven == 0
    assert "taskqueue.direct" in told.refused[0]
    await bench.ready(DEAD, 1)


async def test_a_redriven_message_that_fails_again_is_not_redriven_for_ever(
    bench: Bench, channel: Channel
) -> None:
    worker = Collector()

    def give_up(delivery: Any) -> None:
        worker.on_delivery(delivery)
        channel.reject(delivery.delivery_tag, requeue=False)

    await channel.consume(WORK, give_up, worker.on_cancel)
    letters = 200  # the first are back while the last are on their way
    await asyncio.gather(*(bench.letter(str(number)) for number in range(letters)))
    told = await redrive(bench.connection, *QUEUE)
    assert told.redriven == letters
    await worker.wait(letters)
    await bench.ready(DEAD, letters)
    assert len(worker.deliveries) == letters


async def test_letters_that_somebody_else_holds_are_no_reason_to_wait_for_ever(
    bench: Bench, channel: Channel
) -> None:
    for body in ("one", "two"):
        await bench.letter(body)
    await bench.ready(DEAD, 2)
    other = Collector()
    await channel.set_prefetch(1)
    await other.start(channel, DEAD)
    await other.wait(1)
    assert [
        one.body_start
        for one in (await read_dead_letters(bench.connection, *QUEUE, body_bytes=100)).messages
    ] == [b"two"]


async def test_purged_letters_are_gone_for_everybody(bench: Bench) -> None:
    for body in ("one", "two"):
        await bench.letter(body, headers=TASK)
    await bench.ready(DEAD, 2)
    assert await count(bench.connection, *QUEUE) == 2
    assert await purge(bench.connection, *QUEUE) == 2
    assert await bench.bodies() == []
    await bench.ready(INBOX_QUEUE, 2)  # the operator has copies of its own


@pytest.mark.parametrize("command", [read_dead_letters, redrive, purge, count])
async def test_a_queue_that_does_not_exist_is_named(connection: Connection, command: Any) -> None:
    with pytest.raises(NoDeadQueue, match=r"no queue taskqueue-dead\.shop\.nowhere"):
        await command(connection, "shop", "nowhere")


@dataclass(frozen=True)
class Finished:
    """The exit code and the output, standard error included, of a command."""

    exit_code: int
    output: str


class Shell:
    """Runs the command as a person outside the cluster does."""

    def __init__(self, parameters: BrokerParameters) -> None:
        host = f"[{parameters.host}]" if ":" in parameters.host else parameters.host
        self._uri = (
            f"amqp://{quote(parameters.username, safe='')}:{quote(parameters.password, safe='')}"
            f"@{host}:{parameters.port}/{quote(parameters.virtual_host, safe='')}"
        )

    async def __call__(self, *words: str, uri: str | None = None) -> Finished:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskqueue", "dead-letters", *words),
            *("--broker-uri", uri or self._uri),
            cwd=PACKAGE_ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return Finished(process.returncode, output.decode())


@pytest.fixture
def shell(parameters: BrokerParameters) -> Shell:
    return Shell(parameters)


async def test_the_command_lists_redrives_and_purges(bench: Bench, shell: Shell) -> None:
    await bench.letter("[bold]\x1b[31mred", type="resize", correlation_id="c-1")
    await bench.letter("two", headers=TASK)
    await bench.ready(DEAD, 2)
    listed = await shell("list", "shop/images", "--verbose")
    assert listed.exit_code == 0, listed.output
    assert "ValueError: [bold]\\x1b[31mred" in listed.output
    assert "shop/resize-1" in listed.output
    await bench.ready(DEAD, 2)
    as_json = await shell("list", "shop/images", "--output", "json", "--limit", "1")
    assert '"total": 2' in as_json.output
    assert as_json.output.count('"correlationId"') == 1
    assert '"payload"' not in as_json.output
    await bench.ready(DEAD, 2)

    redriven = await shell("redrive", "shop/images")
    assert redriven.exit_code == 0, redriven.output
    assert "1 message redriven to taskqueue.direct, key shop.images." in redriven.output
    assert "1 message of Tasks kept" in redriven.output
    await bench.ready(WORK, 1)
    await bench.ready(DEAD, 1)

    nobody = await shell("purge", "shop/images")
    assert nobody.exit_code == 2
    await bench.ready(DEAD, 1)
    purged = await shell("purge", "shop/images", "--yes")
    assert (purged.exit_code, purged.output) == (0, "1 dead letters of shop/images deleted.\n")
    empty = await shell("list", "shop/images")
    assert empty.output == "shop/images has no dead letters.\n"


async def test_the_command_says_what_is_wrong(
    bench: Bench, shell: Shell, parameters: BrokerParameters
) -> None:
    missing = await shell("list", "shop/nowhere")
    assert missing.exit_code == 1
    assert "no queue taskqueue-dead.shop.nowhere: check" in missing.output
    unknown = await shell("redrive", "shop/images", "--id", "nobody")
    assert unknown.exit_code == 1
    assert "no message has the id nobody" in unknown.output
    away = await shell("list", "shop/images", uri=f"amqp://u:secret@{parameters.host}:1/")
    assert away.exit_code == 1
    assert "cannot connect to RabbitMQ" in away.output
    assert "secret" not in away.output
    assert (await shell("list", "shop.images")).exit_code == 2
    assert (await shell("list", "shop/images", uri="http://no")).exit_code == 1
