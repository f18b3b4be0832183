"""Runs the scenarios with one worker command, several at a time, within a time limit."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.broker_env import BrokerEnv, open_broker_env
from tests.conformance.points import Ledger, Point
from tests.conformance.scenario import open_scenario
from tests.conformance.scenarios import SCENARIOS, ScenarioEntry
from tests.integration.amqp.endpoint import Endpoint

#: For all scenarios together, in seconds; what has not ended by then fails.
SECONDS = 90.0

#: Scenarios at a time: most of them wait, but each start of a worker costs CPU.
AT_ONCE = 9


@dataclass(frozen=True)
class Findings:
    """The result of a run.

    Attributes:
        command: the worker under test.
        ledger: all checks.
        seconds: how long it took.
        folder: where the logs of the workers are.
    """

    command: Sequence[str]
    ledger: Ledger
    seconds: float
    folder: Path


async def run(
    command: Sequence[str],
    broker: Endpoint,
    folder: Path,
    *,
    at_once: int = AT_ONCE,
    only: Collection[str] = (),
    patience: float = 1.0,
    broken: Point | None = None,
) -> Findings:
    """Test a worker command.

    Args:
        command: starts one worker.
        broker: an endpoint with an administrator's credentials.
        folder: gets logs and traces.
        at_once: scenarios at a time.
        only: names of the scenarios to run; empty for all.
        patience: how often its time everything has; more than once on a busy machine.
        broken: a point that is expected not to hold: its checks have their time once.
    """
    began, limit = time.monotonic(), SECONDS * patience
    ledger = Ledger(patience=patience, broken=broken)
    entries = [entry for entry in SCENARIOS if not only or entry.name in only]
    turns = asyncio.Semaphore(at_once)
    async with open_broker_env(broker) as broker_env:
        await broker_env.open()

        async def run_in_turn(entry: ScenarioEntry) -> None:
            async with turns:
                await _run_scenario(entry, broker_env, broker, ledger, command, folder)

        tasks = {asyncio.ensure_future(run_in_turn(entry)): entry for entry in entries}
        _, late = await asyncio.wait(tasks, timeout=limit - (time.monotonic() - began))
        for task in late:
            task.cancel()
            entry = tasks[task]
            problem = f"has not ended within {limit:g} s"
            ledger.record(entry.name, entry.point, f"scenario {entry.name}", problem)
        await asyncio.gather(*tasks, return_exceptions=True)
        if not only:
            violations = itertools.chain(*broker_env.inbox.violations.values())
            text = "every event of this run follows the contract"
            ledger.record("all", Point.OUTCOMES, text, "; ".join(dict.fromkeys(violations)))
            text = "every heartbeat of this run follows the contract"
            ledger.record(
                "all",
                Point.HEARTBEATS,
                text,
                "; ".join(dict.fromkeys(broker_env.heartbeats.violations)),
            )
    return Findings(command, ledger, time.monotonic() - began, folder)


async def _run_scenario(
    entry: ScenarioEntry,
    broker_env: BrokerEnv,
    broker: Endpoint,
    ledger: Ledger,
    command: Sequence[str],
    folder: Path,
) -> None:
    """Run one scenario; record an error outside its checks as another check."""
    async with (
        ledger.check(
            entry.name, entry.point, f"scenario {entry.name} runs to its end", seconds=SECONDS
        ),
        AsyncExitStack() as stack,
    ):
        if entry.own_broker_env:
            broker_env = await stack.enter_async_context(open_broker_env(broker))
            if entry.declared:
                await broker_env.open()
        scenario = await stack.enter_async_context(
            open_scenario(
                broker_env,
                name=entry.name,
                point=entry.point,
                ledger=ledger,
                command=command,
                folder=folder,
                declared=entry.declared,
            )
        )
        await entry.run(scenario)
