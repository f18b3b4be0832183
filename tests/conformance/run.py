"""Plays all scenes with one worker command, some at a time, within a time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.broker_env import House, house_on
from tests.conformance.points import Ledger, Point
from tests.conformance.scenario import scene_in
from tests.conformance.scenarios import PLAYS, Play
from tests.integration.amqp.endpoint import Endpoint

#: For all scenes together; what is not over then does not hold.
SECONDS = 90.0

#: Scenes at a time: most wait, and each start of a worker takes CPU.
AT_ONCE = 9


@dataclass(frozen=True)
class Findings:
    """What came of a run.

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
) -> Findings:
    """Put a worker command under test.

    Args:
        command: starts one worker.
        broker: where, with the rights of an administrator.
        folder: for logs and traces.
        at_once: scenes at a time.
        only: names of scenes; none: all.
    """
    began = time.monotonic()
    ledger = Ledger()
    plays = [play for play in PLAYS if not only or play.name in only]
    turns = asyncio.Semaphore(at_once)
    async with house_on(broker) as house:
        await house.open()

        async def take_turn(play: Play) -> None:
            async with turns:
                await _play(play, house, broker, ledger, command, folder)

        tasks = {asyncio.ensure_future(take_turn(play)): play for play in plays}
        _, late = await asyncio.wait(tasks, timeout=SECONDS - (time.monotonic() - began))
        for task in late:
            task.cancel()
            play = tasks[task]
            problem = f"not over when the run had taken {SECONDS:g} s"
            ledger.note(play.name, play.point, f"scene {play.name}", problem)
        await asyncio.gather(*tasks, return_exceptions=True)
        if not only:
            wrong = itertools.chain(*house.inbox.wrong.values())
            text = "every event of this run is as the contract says"
            ledger.note("all", Point.OUTCOMES, text, "; ".join(dict.fromkeys(wrong)))
            text = "every heartbeat of this run is as the contract says"
            ledger.note("all", Point.HEARTBEATS, text, "; ".join(dict.fromkeys(house.beats.wrong)))
    return Findings(command, ledger, time.monotonic() - began, folder)


async def _play(
    play: Play,
    house: House,
    broker: Endpoint,
    ledger: Ledger,
    command: Sequence[str],
    folder: Path,
) -> None:
    """Play one scene; what breaks outside its checks is noted as a check of its own."""
    async with (
        ledger.check(
            play.name, play.point, f"scene {play.name} is played to its end", seconds=SECONDS
        ),
        AsyncExitStack() as stack,
    ):
        if play.own_house:
            house = await stack.enter_async_context(house_on(broker))
            if play.declared:
                await house.open()
        scene = await stack.enter_async_context(
            scene_in(
                house,
                name=play.name,
                point=play.point,
                ledger=ledger,
                command=command,
                folder=folder,
                declared=play.declared,
            )
        )
        await play.act(scene)
