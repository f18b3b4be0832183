"""CPU time a message of `taskqueue.amqp` and of pika's `AsyncioConnection`, by the same broker.

Messages are those of the contract, to a quorum queue. A round publishes them with confirms and
reads them with an acknowledgement each, first by one side and then by the other, on the same event
loop; who is first changes from round to round. What counts is the CPU time of this process, so
that others on the machine disturb less. The interval is of the median of the paired ratios: of 15
in order the 4th and the 12th, which enclose it with 96 % (binomial).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.confirms import Settled, UnconfirmedPublishes
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import OnSettled, Publisher
from taskqueue.cli.arguments import CommandParsers
from taskqueue.contract.names import WORK_EXCHANGE, routing_key, work_queue
from taskqueue.contract.work import WorkMessage
from tests.bench.brokers import bench_broker
from tests.bench.cluster import NAMESPACE, QUEUE, Cluster
from tests.bench.command_line import add_benchmark, add_number, broker_only, measure_cluster
from tests.bench.deadline import BenchError, within
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, significant

OURS, PIKA = "taskqueue", "pika"
_KEY = routing_key(NAMESPACE, QUEUE)
_WORK_QUEUE = work_queue(NAMESPACE, QUEUE)
#: Unconfirmed publishes at once.
_OUTSTANDING = 500
_PREFETCH = 200
_ROUND_SECONDS = 120.0

_MESSAGE = WorkMessage(
    namespace=NAMESPACE,
    queue=QUEUE,
    task="resize-0042",
    uid="5d0c8a52-6d5f-4f6e-9a59-3e9d6c1f2b7a",
    handler="resize",
    attempt=1,
    max_attempts=3,
    epoch=0,
    token="k1.0123456789abcdef0123456789abcdef0123456789abcdef",
    max_deliveries=3,
    timeout_seconds=300,
    body=b'{"source": "s3://photographs/0042.jpeg", "width": 320, "height": 240}',
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured: messages of a round, and rounds."""

    messages: int
    rounds: int


class Side(Protocol):
    """One way to speak AMQP."""

    def publish(self, on_settled: OnSettled) -> None:
        """Publish `_MESSAGE`, with a confirm."""

    async def consume(self, on_message: Callable[[], None]) -> Callable[[], Any]:
        """Read the queue and acknowledge each message; return what ends that."""

    async def close(self) -> None:
        """Close the connection."""


class Ours:
    """`taskqueue.amqp`."""

    def __init__(self, connection: Connection, publisher: Publisher, channel: Channel) -> None:
        self._connection = connection
        self._publisher = publisher
        self._channel = channel

    @classmethod
    async def open(cls, parameters: BrokerParameters) -> Ours:
        connection = await connect(parameters, name="bench: ours", heartbeat_seconds=60)
        channel = await connection.channel()
        await channel.set_prefetch(_PREFETCH)
        return cls(connection, await Publisher.open(connection), channel)

    def publish(self, on_settled: OnSettled) -> None:
        properties = _MESSAGE.properties()
        self._publisher.publish(WORK_EXCHANGE, _KEY, _MESSAGE.body, properties, on_settled)

    async def consume(self, on_message: Callable[[], None]) -> Callable[[], Any]:
        def on_delivery(delivery: Delivery) -> None:
            self._channel.ack(delivery.delivery_tag)
            on_message()

        tag = await self._channel.consume(_WORK_QUEUE, on_delivery, lambda reason: None)
        return lambda: self._channel.cancel(tag)

    async def close(self) -> None:
        await self._connection.close()


class Pikas:
    """pika's own asyncio adapter, with the same account of unconfirmed publishes."""

    def __init__(self, connection: Any, publishing: Any, consuming: Any) -> None:
        self._connection = connection
        self._publishing = publishing
        self._consuming = consuming
        self._outstanding = UnconfirmedPublishes(_raise)

    @classmethod
    async def open(cls, parameters: BrokerParameters) -> Pikas:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        connection = AsyncioConnection(
            pika.ConnectionParameters(
                host=parameters.host,
                port=parameters.port,
                virtual_host=parameters.virtual_host,
                credentials=pika.PlainCredentials(parameters.username, parameters.password),
                heartbeat=60,
            ),
            on_open_callback=opened.set_result,
            on_open_error_callback=lambda _, error: opened.set_exception(error),
            custom_ioloop=loop,
        )
        await opened
        side = cls(connection, *[await _channel(connection) for _ in range(2)])
        await _reply(
            lambda done: side._consuming.basic_qos(prefetch_count=_PREFETCH, callback=done)
        )
        await _reply(
            lambda done: side._publishing.confirm_delivery(side._on_confirm, callback=done)
        )
        return side

    def publish(self, on_settled: OnSettled) -> None:
        properties = _MESSAGE.properties()
        self._publishing.basic_publish(WORK_EXCHANGE, _KEY, _MESSAGE.body, properties, True)
        self._outstanding.add(str(properties.message_id), on_settled)

    async def consume(self, on_message: Callable[[], None]) -> Callable[[], Any]:
        def on_delivery(channel: Any, method: Any, _: Any, __: bytes) -> None:
            channel.basic_ack(method.delivery_tag)
            on_message()

        tag = self._consuming.basic_consume(_WORK_QUEUE, on_delivery)
        return lambda: _reply(lambda done: self._consuming.basic_cancel(tag, callback=done))

    async def close(self) -> None:
        self._connection.close()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        acked = isinstance(method, pika.spec.Basic.Ack)
        self._outstanding.on_confirm(method.delivery_tag, multiple=method.multiple, acked=acked)


async def _channel(connection: Any) -> Any:
    return await _reply(lambda done: connection.channel(on_open_callback=done))


async def _reply(ask: Callable[[Callable[[Any], None]], Any]) -> Any:
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ask(reply.set_result)
    return await reply


def _raise(error: Exception) -> None:
    raise error


async def run(target: Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure both sides in turn.

    Raises:
        BenchError: the broker is not there, or refuses a message.
    """
    publish: dict[str, list[float]] = {OURS: [], PIKA: []}
    consume: dict[str, list[float]] = {OURS: [], PIKA: []}
    async with bench_broker(target.client) as broker:
        sides: dict[str, Side] = {
            OURS: await Ours.open(broker.parameters),
            PIKA: await Pikas.open(broker.parameters),
        }
        for name, side in sides.items():  # caches, memory, the queue's first segment
            await _round(name, side, min(settings.messages, 500))
        for number in range(settings.rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                spent = await _round(name, sides[name], settings.messages)
                publish[name].append(spent[0])
                consume[name].append(spent[1])
            report.say(f"round {number + 1} of {settings.rounds}")
        for side in sides.values():
            await side.close()
    return _outcome(publish, consume, report)


async def _round(name: str, side: Side, count: int) -> tuple[float, float]:
    """Return CPU microseconds a message: of its publish and confirm, of its delivery and ack."""
    async with within(_ROUND_SECONDS, f"a round of {name}"):
        published = await _publish(side, count)
        return published, await _consume(side, count)


async def _publish(side: Side, count: int) -> float:
    room = asyncio.Semaphore(_OUTSTANDING)
    refused: list[str] = []

    def on_settled(verdict: Settled, text: str) -> None:
        room.release()
        if verdict is not Settled.CONFIRMED:
            refused.append(text)

    begin = time.process_time()
    for _ in range(count):
        await room.acquire()
        side.publish(on_settled)
    for _ in range(_OUTSTANDING):
        await room.acquire()
    spent = time.process_time() - begin
    if refused:
        raise BenchError(f"RabbitMQ refused {len(refused)} messages: {refused[0]}")
    return spent / count * 1e6


async def _consume(side: Side, count: int) -> float:
    missing = count
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_message() -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            done.set_result(None)

    begin = time.process_time()
    stop = await side.consume(on_message)
    await done
    spent = time.process_time() - begin
    await stop()
    return spent / count * 1e6


def _outcome(
    publish: dict[str, list[float]], consume: dict[str, list[float]], report: Report
) -> Outcome:
    both = {
        name: [sum(pair) for pair in zip(publish[name], consume[name], strict=True)]
        for name in publish
    }
    figures, spread, ratios, intervals = {}, {}, {}, {}
    for what, spent in (("publish", publish), ("consume", consume), ("both", both)):
        for name, values in spent.items():
            figures[f"{what}_{name}_us"] = median(values)
            spread[f"{what}_{name}_us"] = Spread.of(values)
        paired = [ours / pikas for ours, pikas in zip(spent[OURS], spent[PIKA], strict=True)]
        ratios[f"{what}_vs_pika"] = median(paired)
        intervals[f"{what}_vs_pika"] = [significant(value) for value in interval(paired)]
    report.spreads("CPU microseconds a message", spread)
    return Outcome("codec", figures, ratios, spread, {"interval": intervals})


def interval(values: list[float]) -> tuple[float, float]:
    """Return two of the values that enclose the median with 95 % or more; all if there are few."""
    ordered = sorted(values)
    cut = 0
    while _tail(len(ordered), cut + 1) <= 0.025:
        cut += 1
    return ordered[cut - 1 if cut else 0], ordered[-cut if cut else -1]


def _tail(count: int, below: int) -> float:
    """Return how likely fewer than ``below`` of ``count`` values lie under the median."""
    ways, total = 1, 0
    for drawn in range(below):
        total += ways
        ways = ways * (count - drawn) // (drawn + 1)
    return math.ldexp(total, -count)


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "codec",
        _run_command,
        help="Measure CPU time a message of our AMQP transport and of pika's.",
    )
    add_number(parser, "--messages", 4000, "messages of a round")
    add_number(parser, "--rounds", 15, "rounds")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(messages=options.messages, rounds=options.rounds)
    if options.quick:
        settings = Settings(messages=min(options.messages, 500), rounds=2)
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        stage=broker_only,
    )
