"""Schedules of one minute: how late their Tasks are, and that each run is created exactly once.

In one run: some minutes in peace, one in which the leading operator is killed while it creates
Tasks, some without any operator, and some with jitter. A third of the schedules has each policy for
missed runs. A watch of the Tasks, which shows each that was ever there, says what was created when.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskqueue.api.common import API_VERSION, TASKSCHEDULE_KIND
from taskqueue.cli.arguments import CommandParsers
from taskqueue.kubernetes.informer import Informer, Key
from taskqueue.kubernetes.schedule_codec import SCHEDULE_LABEL, schedule_path
from tests.bench import cluster
from tests.bench.command_line import add_benchmark, add_number, measure_cluster
from tests.bench.deadline import BenchError, until
from tests.bench.load import at_once
from tests.bench.operators import SHIPPED, Operators, scale
from tests.bench.report import Outcome, Report
from tests.bench.statistics import Spread, percentile
from tests.bench.task_load import TASKS

POLICIES = ("None", "Last", "All")
_CLIENTS = 8
_TAKEOVER_SECONDS = 60
#: The most runs that are made up for: more than a minute has of them in any phase.
_LIMIT = 20
#: How long after the last minute of a phase its runs have been created, or never will be.
_SETTLE_SECONDS = 45
#: Into the minute at which the leader is killed: some of the Tasks are there, others are not.
_KILL_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        schedules: of one minute.
        minutes: in peace, and again with jitter.
        absent_minutes: without an operator.
        jitter_seconds: of each schedule, in the last minutes.
    """

    schedules: int
    minutes: int
    absent_minutes: int
    jitter_seconds: int = 30


@dataclass
class SeenRuns:
    """The Tasks of schedules that were ever there; the handler of an informer.

    Attributes:
        uids: of each name: two are a run that was created twice.
        late: by (schedule, minute), seconds from the minute to the moment it was seen.
    """

    uids: dict[str, set[str]] = field(default_factory=dict)
    late: dict[tuple[str, int], float] = field(default_factory=dict)

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take note of a Task."""
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        schedule, _, minute = name.rpartition("-")
        self.uids.setdefault(name, set()).add(uid)
        self.late.setdefault((schedule, int(minute)), time.time() - int(minute) * 60)

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Fail: there is no such Task here."""
        raise BenchError(f"a Task cannot be read: {problem}")

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Keep what was there."""

    def created_twice(self) -> list[str]:
        """Return the names under which several Tasks were created."""
        return sorted(name for name, uids in self.uids.items() if len(uids) > 1)


def missing(
    late: Collection[tuple[str, int]], names: Sequence[str], minutes: range
) -> Counter[int]:
    """Return how many schedules have no run of a minute, for each minute that lacks some."""
    return Counter(minute for minute in minutes for name in names if (name, minute) not in late)


async def run(target: cluster.Cluster, settings: Settings, report: Report) -> Outcome:
    """Measure, with two operators."""
    operators = await Operators.open(target)
    await cluster.apply_queue(
        target.client, scaling={"minReplicas": 1, "maxReplicas": 1}, concurrency=8
    )
    seen = SeenRuns()
    watch = Informer(target.watcher, TASKS, seen, selectors={"labelSelector": SCHEDULE_LABEL})
    watching = asyncio.create_task(watch.run())
    try:
        await watch.synced.wait()
        return await _phases(target, operators, settings, seen, report)
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _phases(
    target: cluster.Cluster,
    operators: Operators,
    settings: Settings,
    seen: SeenRuns,
    report: Report,
) -> Outcome:
    names = [f"s{number:04}" for number in range(settings.schedules)]
    by_policy = {policy: names[number :: len(POLICIES)] for number, policy in enumerate(POLICIES)}
    await operators.settled()
    await _until_second(5)
    await _apply(target, by_policy, jitter=0)

    peace = await _minutes(settings.minutes)
    _check(seen, by_policy, peace, absent=range(0))
    lateness = [seen.late[name, minute] for minute in peace for name in names]
    report.say(f"in peace: at most {max(lateness):.2f} s after the minute")

    killed = _this_minute() + 1
    leader = await operators.settled()
    await asyncio.sleep(killed * 60 + _KILL_SECONDS - time.time())
    before = sum(minute == killed for _, minute in seen.late)
    await operators.signal(leader, "SIGKILL")
    await operators.led_by_another(leader, seconds=_TAKEOVER_SECONDS)
    await asyncio.sleep(_SETTLE_SECONDS)
    _check(seen, by_policy, range(killed, killed + 1), absent=range(0))
    after_kill = [seen.late[name, killed] for name in names]
    report.say(
        f"killed at the minute, with {before} of {len(names)} seen: all there after "
        f"{max(after_kill):.2f} s, each once"
    )

    await _until_second(5)
    await scale(target.client, 0)
    left = _this_minute() + 1
    await asyncio.sleep((left + settings.absent_minutes) * 60 - 20 - time.time())
    await scale(target.client, SHIPPED)
    back = _this_minute()
    absence = range(left, back + 1)
    await asyncio.sleep(_SETTLE_SECONDS)
    _check(seen, by_policy, absence, absent=range(left, back))
    lost = {
        policy: sum(missing(seen.late, some, absence).values())
        for policy, some in by_policy.items()
    }
    report.say(f"without an operator from {left} to {back}: runs not made up for, {lost}")

    await _until_second(5)
    await _apply(target, by_policy, jitter=settings.jitter_seconds)
    spread = await _minutes(settings.minutes, extra=settings.jitter_seconds)
    _check(seen, by_policy, spread, absent=range(0))
    delays = [seen.late[name, minute] for minute in spread for name in names]
    report.say(f"with jitter: {min(delays):.2f} to {max(delays):.2f} s after the minute")
    return Outcome(
        bench="schedules",
        figures={
            "latest_seconds": max(lateness),
            "p50_seconds": percentile(lateness, 50),
            "latest_after_kill_seconds": max(after_kill),
        },
        ratios={},
        spread={"jitter_seconds": Spread.of(delays)},
        details={"schedules": len(names), "seen_before_kill": before, "not_made_up_for": lost},
    )


def _check(
    seen: SeenRuns, by_policy: Mapping[str, Sequence[str]], minutes: range, *, absent: range
) -> None:
    """Fail unless each run is there once; of an absence only All makes up for every one."""
    if twice := seen.created_twice():
        raise BenchError(f"{len(twice)} runs were created twice, such as {twice[0]}")
    for policy, names in by_policy.items():
        lacking = missing(seen.late, names, minutes)
        if policy != "All":
            lacking = Counter({m: n for m, n in lacking.items() if m not in absent})
        if lacking:
            raise BenchError(
                f"{lacking.total()} runs of schedules with {policy} were not created, by minute: "
                f"{dict(lacking)}"
            )


async def _apply(
    target: cluster.Cluster, by_policy: Mapping[str, Sequence[str]], *, jitter: int
) -> None:
    policies = {name: policy for policy, names in by_policy.items() for name in names}

    async def apply(name: str) -> None:
        template = {"spec": {"queue": cluster.QUEUE, "handler": cluster.HANDLER}}
        body = {
            "apiVersion": API_VERSION,
            "kind": TASKSCHEDULE_KIND,
            "metadata": {"name": name, "namespace": cluster.NAMESPACE},
            "spec": {
                "schedules": ["* * * * *"],
                "missedRuns": {"policy": policies[name], "limit": _LIMIT},
                "jitterSeconds": jitter,
                "taskTemplate": template,
            },
        }
        path = schedule_path(cluster.NAMESPACE, name)
        await target.load.apply(path, body, manager=cluster.MANAGER)

    await at_once(_CLIENTS, policies, apply)

    async def are_served() -> bool:
        raw = await target.client.get(schedule_path(cluster.NAMESPACE, max(policies)))
        observed: int = (raw.get("status") or {}).get("observedGeneration", -1)
        return observed == int(raw["metadata"]["generation"])

    await until(are_served, seconds=_TAKEOVER_SECONDS, what="the schedules being served")


async def _minutes(count: int, *, extra: int = 0) -> range:
    """Let so many whole minutes pass, and what follows of their runs; return them."""
    first = _this_minute() + 1
    await asyncio.sleep((first + count - 1) * 60 + _SETTLE_SECONDS + extra - time.time())
    return range(first, first + count)


async def _until_second(second: float) -> None:
    """Wait until this second of a minute: applying and scaling must not cross one."""
    await asyncio.sleep((second - time.time()) % 60)


def _this_minute() -> int:
    return int(time.time() // 60)


def add_command(benchmarks: CommandParsers) -> None:
    """Add the benchmark to the command line."""
    parser = add_benchmark(
        benchmarks,
        "schedules",
        _run_command,
        help="Measure how late runs of schedules of one minute are, and that each is created once, "
        "also when operators are lost: 12 minutes.",
    )
    add_number(parser, "--schedules", 300, "schedules of one minute", minimum=3)
    add_number(parser, "--minutes", 2, "minutes in peace, and with jitter")
    add_number(parser, "--absent-minutes", 3, "minutes without an operator")


def _run_command(options: argparse.Namespace) -> int:
    settings = Settings(
        schedules=options.schedules,
        minutes=options.minutes,
        absent_minutes=options.absent_minutes,
    )
    if options.quick:
        settings = Settings(schedules=6, minutes=1, absent_minutes=1)
    return measure_cluster(
        options,
        lambda target, report: run(target, settings, report),
        stage=cluster.bench_namespace,
    )
