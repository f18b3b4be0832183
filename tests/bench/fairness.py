"""Fair shares under load: two teams with weights of 3 to 1, and what shares and limits cost.

A round creates the Tasks of both teams in a held TaskQueue, lets it go, and sees when each ends. It
is measured with spec.flow (shares, two rate limits that are never reached, ageing, a limit of what
waits) and without, in turn. As long as both teams have Tasks left, their shares must be those of
the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from taskqueue.api.common import API_VERSION, TASK_KIND
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.taskqueue_codec import queue_path
from tests.bench import cluster
from tests.bench.deadline import BenchError, until
from tests.bench.load import at_once
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, ratio
from tests.bench.task_load import TASKS
from tests.bench.throughput import measure_tasks
from tests.bench.watches import TOUCHED_TASKS, EndWatch
from tests.bench.with_and_without import Settings, add_with_and_without

WEIGHTS = {"heavy": 3, "light": 1}
#: How far a share may be from its weight, as a fraction of it.
TOLERANCE = 0.05
_NEVER_REACHED = {"attempts": 1_000_000, "periodSeconds": 60, "burst": 1_000_000}
FLOW: Mapping[str, Any] = {
    "fairness": {
        "key": {"type": "Label", "name": "team"},
        "weights": [{"value": team, "weight": weight} for team, weight in WEIGHTS.items()],
    },
    "rateLimits": [
        {"name": "all", **_NEVER_REACHED},
        {"name": "each", "scope": "PerKey", **_NEVER_REACHED},
    ],
    "priorityAgeing": {"perSeconds": 60, "step": 1},
    "maxWaiting": 1_000_000,
}
_WARM_UP_TASKS = 200
#: Slower than this by far, and the benchmark gives up: Tasks a second.
_SLOWEST = 5


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure and report.

    Raises:
        BenchError: the shares are not those of the weights.
    """
    scaling = {"minReplicas": settings.workers, "maxReplicas": settings.workers}
    await cluster.apply_queue(target.client, scaling=scaling, concurrency=settings.concurrency)
    await cluster.workers_ready(target.client, settings.workers)
    await measure_tasks(target, "warm-up", _WARM_UP_TASKS, settings.clients)
    rates: dict[bool, list[float]] = {True: [], False: []}
    shares: list[float] = []
    for number in range(settings.rounds):
        # The later of two is measured on what the first has left: each is that in turn.
        for is_fair in (False, True) if number % 2 else (True, False):
            await cluster.delete_all(target.client, TASKS)
            seconds, ends = await _round(target, settings, is_fair)
            rates[is_fair].append(len(ends) / seconds)
            text = f"round {number}: {rates[is_fair][-1]:.1f} tasks/s"
            share = heavy_share(ends)
            if is_fair:
                shares.append(share)
            report.say(f"{text} {'with' if is_fair else 'without'} spec.flow, share {share:.3f}")
    return _report(rates, shares, report)


def heavy_share(order: Sequence[str]) -> float:
    """Return the share of the heavy team in the ends, as long as Tasks of both wait.

    That is until nine tenths of a team have ended: the rest is at the broker then, or with workers,
    where nothing orders it any more.

    Args:
        order: the team of each Task that ended, the first first.
    """
    left = {team: math.ceil(0.9 * order.count(team)) for team in WEIGHTS}
    for number, team in enumerate(order, 1):
        left[team] -= 1
        if not left[team]:
            return order[:number].count("heavy") / number
    raise BenchError("nothing has ended")


async def _round(
    target: cluster.Cluster, settings: Settings, is_fair: bool
) -> tuple[float, list[str]]:
    """Return how long it took from letting the queue go, and the teams in the order of ends."""
    await _change(target, {"stopPolicy": "Hold", "flow": FLOW if is_fair else None})
    # The Tasks of the teams take turns, so that age does not decide.
    teams = {f"{team}-{i:06}": team for i in range(settings.tasks) for team in WEIGHTS}
    async with EndWatch(target.watcher, TASKS, selectors=TOUCHED_TASKS) as watch:
        await at_once(settings.clients, list(teams), lambda name: _create(target, name))
        start = time.perf_counter()
        await _change(target, {"stopPolicy": "None"})
        seen = await watch.all_ended(list(teams), seconds=60 + len(teams) / _SLOWEST)
    order = sorted(seen, key=seen.__getitem__)
    return max(seen.values()) - start, [teams[name] for name in order]


async def _create(target: cluster.Cluster, name: str) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": TASK_KIND,
        "metadata": {
            "name": name,
            "namespace": cluster.NAMESPACE,
            "labels": {"team": name.partition("-")[0]},
        },
        "spec": {"queue": cluster.QUEUE, "handler": cluster.HANDLER, "payload": {"name": name}},
    }
    await target.load.request("POST", TASKS, body=orjson.dumps(body))


async def _change(target: cluster.Cluster, spec: Mapping[str, Any]) -> None:
    path = queue_path((cluster.NAMESPACE, cluster.QUEUE))
    changed = await target.client.merge(path, {"spec": dict(spec)})
    generation = changed["metadata"]["generation"]

    async def is_seen() -> bool:
        raw = await target.client.get(path)
        return bool((raw.get("status") or {}).get("observedGeneration") == generation)

    await until(is_seen, seconds=60, what="the TaskQueue's change is seen")


def _report(rates: dict[bool, list[float]], shares: Sequence[float], report: Report) -> Outcome:
    spread = {
        "tasks_per_second": Spread.of(rates[True]),
        "tasks_per_second_without": Spread.of(rates[False]),
        "heavy_share": Spread.of(list(shares)),
    }
    report.spreads("fair shares", spread)
    wanted = WEIGHTS["heavy"] / sum(WEIGHTS.values())
    for share in shares:
        if abs(share - wanted) > TOLERANCE * wanted:
            raise BenchError(f"the heavy team got {share:.3f} of the ends, not {wanted}")
    return Outcome(
        bench="fairness",
        figures={name: value.middle for name, value in spread.items()},
        ratios={
            "vs_without": ratio(
                spread["tasks_per_second"].middle, spread["tasks_per_second_without"].middle
            )
        },
        spread=spread,
    )


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    add_with_and_without(
        benchmarks,
        "fairness",
        run,
        help="Measure the shares of two teams, and Tasks a second with spec.flow and without.",
        tasks=5000,
        tasks_help="Tasks of each team in a round",
        rounds=2,
    )
