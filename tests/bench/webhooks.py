"""The cost of a webhook: throughput of one TaskQueue with and without, in turn.

The receiver runs in this process, so it takes its part of the same cores, as do the requests that
come after the last Task has ended: those are waited for, and counted. A receiver that has not got
each end has no figure.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence

from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.taskqueue_codec import queue_path
from tests.bench import cluster
from tests.bench.archive import facing
from tests.bench.deadline import BenchError, until
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio
from tests.bench.task_load import TASKS
from tests.bench.throughput import measure_tasks
from tests.bench.with_and_without import Settings, add_with_and_without
from tests.integration.webhooks.receiver import WebhookReceiver

_SECRET = "webhook"
_WARM_UP_TASKS = 200
_SENT_SECONDS = 120


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report. The operator must be allowed to send to this machine.

    Raises:
        BenchError: an end was not sent.
    """
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    receiver = WebhookReceiver(secret, facing(target.host, target.access.base_url))
    try:
        path = f"/api/v1/namespaces/{cluster.NAMESPACE}/secrets"
        body = {"metadata": {"name": _SECRET}, "stringData": {"secret": secret}}
        await target.client.request("POST", path, body=body)
        scaling = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
        await cluster.apply_queue(target.client, scaling=scaling, concurrency=settings.concurrency)
        await cluster.workers_ready(target.client, settings.workers)
        return await _measure(target, settings, report, receiver)
    finally:
        receiver.stop()


async def _measure(
    target: cluster.Cluster, settings: Settings, report: Report, receiver: WebhookReceiver
) -> Outcome:
    rates: dict[bool, list[float]] = {True: [], False: []}
    lags: list[float] = []
    await measure_tasks(target, "warm-up", _WARM_UP_TASKS, settings.clients)
    for number in range(settings.rounds):
        # The later of two is measured on what the first has left: each is that in turn.
        for is_sent in (False, True) if number % 2 else (True, False):
            await cluster.delete_all(target.client, TASKS)
            await _set_webhook(target, receiver.url if is_sent else "")
            name = f"{'with' if is_sent else 'without'}-{number}"
            one = await measure_tasks(target, name, settings.tasks, settings.clients)
            rates[is_sent].append(settings.tasks / one.seconds)
            text = f"round {number}, {name}: {rates[is_sent][-1]:.1f} tasks/s"
            if is_sent:
                lags.append(await _all_sent(receiver, f"{name}-", settings.tasks))
                text += f", and all sent {lags[-1]:.2f} s after the last end"
            report.say(text)
    return _report(rates, lags, report)


def _report(rates: dict[bool, list[float]], lags: Sequence[float], report: Report) -> Outcome:
    spread = {
        "tasks_per_second": Spread.of(rates[True]),
        "tasks_per_second_without": Spread.of(rates[False]),
        "send_lag_seconds": Spread.of(list(lags)),
    }
    report.spreads("a webhook", spread)
    return Outcome(
        bench="webhooks",
        figures={name: value.middle for name, value in spread.items()},
        ratios={
            "vs_without": ratio(
                spread["tasks_per_second"].middle, spread["tasks_per_second_without"].middle
            )
        },
        spread=spread,
    )


async def _set_webhook(target: cluster.Cluster, url: str) -> None:
    """Have the TaskQueue send to this URL, and wait until it does; "": to nobody."""
    path = queue_path((cluster.NAMESPACE, cluster.QUEUE))
    signing = {"name": _SECRET, "key": "secret"}
    hook = {"name": "bench", "url": url, "signingSecretKeyRef": signing}
    changed = await target.client.merge(path, {"spec": {"notifications": [hook] if url else None}})
    generation = changed["metadata"]["generation"]

    async def is_settled() -> bool:
        raw = await target.client.get(path)
        status = raw.get("status") or {}
        found = {one["type"]: one["status"] for one in status.get("conditions") or ()}
        is_seen = status.get("observedGeneration") == generation
        return is_seen and found.get("WebhooksDelivered") == ("True" if url else None)

    await until(is_settled, seconds=60, what=f"the webhook is {'on' if url else 'off'}")


async def _all_sent(receiver: WebhookReceiver, prefix: str, count: int) -> float:
    """Return how long it takes from now until all ends of a round are accepted."""
    begin = time.perf_counter()
    found: set[str] = set()

    async def is_complete() -> bool:
        nonlocal found
        names = [str(one["subject"]).partition("/")[2] for one in list(receiver.events.values())]
        found = {name for name in names if name.startswith(prefix)}
        return len(found) >= count

    await until(is_complete, seconds=_SENT_SECONDS, what=f"{count} ends of {prefix} accepted")
    if receiver.forged:
        raise BenchError(f"{receiver.forged} requests whose signature is not right")
    return time.perf_counter() - begin


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    add_with_and_without(
        benchmarks,
        "webhooks",
        run,
        help="Measure Tasks a second of a TaskQueue with a webhook, and without, in turn.",
    )
