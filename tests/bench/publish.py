"""Publishing direct messages: our client against one confirm at a time.

Both send small persistent messages to the same quorum queue, and know of each that the broker has
it. `Producer.send_many` has many on the way; pika's ``BlockingConnection`` in confirm mode, the way
its documentation shows, waits for each before it sends the next.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

import pika
from pika.exchange_type import ExchangeType
from pika.spec import BasicProperties

from taskqueue.cli.arguments import CommandParsers
from taskqueue.contract.names import work_queue
from taskqueue.direct.producer import Producer
from tests.bench import cluster as bench
from tests.bench.brokers import Broker, bench_broker
from tests.bench.cluster import Cluster
from tests.bench.command_line import add_benchmark, add_number, broker_only, measure_cluster
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio

_EXCHANGE = "bench.publish"


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        messages: of one of our rounds.
        one_at_a_time: messages of one of pika's rounds.
        rounds: of each, in turn.
    """

    messages: int
    one_at_a_time: int
    rounds: int


async def run(cluster: Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure both in turns, and report."""
    ours: list[float] = []
    theirs: list[float] = []
    queue = work_queue(bench.NAMESPACE, bench.QUEUE)
    async with bench_broker(cluster.client) as broker:
        for number in range(settings.rounds):
            ours.append(await asyncio.to_thread(_ours, broker, settings.messages))
            await broker.channel.purge_queue(queue)
            theirs.append(
                await asyncio.to_thread(_one_at_a_time, broker, queue, settings.one_at_a_time)
            )
            await broker.channel.purge_queue(queue)
            report.say(f"round {number}: {ours[-1]:.0f} messages/s; pika {theirs[-1]:.0f}")
    pairs = zip(ours, theirs, strict=True)
    spread = {
        "taskqueue_per_second": Spread.of(ours),
        "one_confirm_at_a_time_per_second": Spread.of(theirs),
        "vs_one_confirm_at_a_time": Spread.of([ratio(mine, its) for mine, its in pairs]),
    }
    report.spreads("messages a second; ratios of the rounds", spread)
    return Outcome(
        bench="publish",
        figures={name: s.middle for name, s in spread.items() if not name.startswith("vs_")},
        ratios={name: s.middle for name, s in spread.items() if name.startswith("vs_")},
        spread=spread,
    )


def _ours(broker: Broker, count: int) -> float:
    """Return messages a second, each of them confirmed."""
    payload = {"name": "resize-0042"}
    with Producer(broker.uri) as producer:
        producer.send(bench.NAMESPACE, bench.QUEUE, payload, handler="noop")  # it is connected
        start = time.perf_counter()
        producer.send_many(bench.NAMESPACE, bench.QUEUE, [payload] * count, handler="noop")
        return count / (time.perf_counter() - start)


def _one_at_a_time(broker: Broker, queue: str, count: int) -> float:
    properties = BasicProperties(
        type="noop", delivery_mode=2, content_type="application/json", message_id="resize-0042"
    )
    with pika.BlockingConnection(pika.URLParameters(broker.uri)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare(_EXCHANGE, ExchangeType.direct, auto_delete=True)
        channel.queue_bind(queue, _EXCHANGE, "bench")
        start = time.perf_counter()
        for _ in range(count):
            channel.basic_publish(
                _EXCHANGE, "bench", b'{"name":"resize-0042"}', properties, mandatory=True
            )
        seconds = time.perf_counter() - start
        channel.queue_unbind(queue, _EXCHANGE, "bench")
        return count / seconds


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "publish",
        _run_command,
        help="Measure direct messages a second, sent and confirmed.",
    )
    add_number(parser, "--messages", 20_000, "messages of a round")
    add_number(parser, "--one-at-a-time", 1000, "messages of a round of pika's")
    add_number(parser, "--rounds", 5, "rounds")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(
        messages=options.messages, one_at_a_time=options.one_at_a_time, rounds=options.rounds
    )
    if options.quick:
        settings = Settings(
            messages=min(options.messages, 1000),
            one_at_a_time=min(options.one_at_a_time, 50),
            rounds=1,
        )
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        stage=broker_only,
    )
