"""How a standby waits for the Lease, and how that ends."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from taskqueue.controller.manager import _stand_by
from taskqueue.controller.tasks.task_feed import TaskFeed
from taskqueue.kubernetes.lease import LeaderElector


class Waiting:
    """A Lease that another holds, and the feed of a standby."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.broken = asyncio.Event()
        self.running: set[str] = set()

    async def acquire(self) -> None:
        await self._run("acquire", self.free)

    async def run(self) -> None:
        await self._run("feed", self.broken)
        raise RuntimeError("the feed is broken")

    async def _run(self, name: str, until: asyncio.Event) -> None:
        self.running.add(name)
        try:
            await until.wait()
        finally:
            self.running.discard(name)


async def stand_by(waiting: Waiting, stop: asyncio.Event) -> asyncio.Task[bool]:
    task = asyncio.create_task(
        _stand_by(cast(LeaderElector, waiting), cast(TaskFeed, waiting), stop)
    )
    for _ in range(3):
        await asyncio.sleep(0)
    assert waiting.running == {"acquire", "feed"}
    return task


async def test_a_standby_that_has_the_lease_no_longer_follows_the_tasks() -> None:
    waiting = Waiting()
    task = await stand_by(waiting, asyncio.Event())
    waiting.free.set()
    assert await task
    assert not waiting.running


async def test_a_standby_that_is_stopped_does_not_lead() -> None:
    waiting, stop = Waiting(), asyncio.Event()
    task = await stand_by(waiting, stop)
    stop.set()
    assert not await task
    assert not waiting.running


async def test_a_standby_whose_feed_fails_ends() -> None:
    waiting = Waiting()
    task = await stand_by(waiting, asyncio.Event())
    waiting.broken.set()
    with pytest.raises(RuntimeError, match="the feed is broken"):
        await task
    assert not waiting.running
