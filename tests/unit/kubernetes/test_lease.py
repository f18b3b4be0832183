"""Leader election in virtual time, against a store that races, hangs and fails on order."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.lease import LeaderElector, LeaseTiming

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

TIMING = LeaseTiming(duration=12, renew_deadline=8, period=2)


class Store:
    """A Lease in memory: a replace of an older version is a conflict."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] | None = None
        self.version = 0
        self.broken = False
        self.hanging = False

    async def read(self) -> dict[str, Any] | None:
        await self._answer()
        return None if self.spec is None else self._lease()

    async def create(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        await self._answer()
        if self.spec is not None:
            raise ApiError(409, "AlreadyExists", "exists")
        return self._put(spec)

    async def replace(self, lease: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        await self._answer()
        if lease["metadata"]["resourceVersion"] != self.version:
            raise ApiError(409, "Conflict", "changed")
        return self._put(spec)

    @property
    def holder(self) -> str | None:
        return None if self.spec is None else self.spec["holderIdentity"]

    def _put(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        self.spec, self.version = dict(spec), self.version + 1
        return self._lease()

    def _lease(self) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": self.version}, "spec": dict(self.spec or {})}

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)
        if self.hanging:
            await asyncio.sleep(1e9)
        if self.broken:
            raise ApiError(500, "InternalError", "broken")


class Candidate:
    """A process that leads whenever it can, and keeps a diary."""

    def __init__(self, store: Store, name: str) -> None:
        self.leadership = LeaderElector(
            store, name, timing=TIMING, clock=now, end_process=lambda code: None
        )
        self.led: list[tuple[float, float | None]] = []

    async def run(self) -> None:
        await self.leadership.acquire()
        self.led.append((now(), None))
        try:
            await self.leadership.hold()
        finally:
            self.led[-1] = (self.led[-1][0], now())


def now() -> float:
    return asyncio.get_running_loop().time()


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_first_one_leads_and_keeps_leading() -> None:
    store = Store()
    task = asyncio.create_task(Candidate(store, "a").run())
    await asyncio.sleep(100)
    assert store.holder == "a"
    assert not task.done()
    await stop(task)


async def test_a_second_one_waits_while_the_first_renews() -> None:
    store = Store()
    first, second = Candidate(store, "a"), Candidate(store, "b")
    tasks = [asyncio.create_task(one.run()) for one in (first, second)]
    await asyncio.sleep(200)
    assert len(first.led) + len(second.led) == 1
    await stop(*tasks)


async def test_when_the_first_dies_the_second_takes_over_after_the_duration() -> None:
    store = Store()
    first, second = Candidate(store, "a"), Candidate(store, "b")
    task = asyncio.create_task(first.run())
    await asyncio.sleep(20)
    other = asyncio.create_task(second.run())
    await asyncio.sleep(20)
    await stop(task)
    died = now()
    await asyncio.sleep(30)
    assert store.holder == "b"
    assert TIMING.duration - TIMING.period <= second.led[0][0] - died <= TIMING.duration + 2
    await stop(other)


async def test_a_released_lease_is_taken_at_once() -> None:
    store = Store()
    first, second = Candidate(store, "a"), Candidate(store, "b")
    task = asyncio.create_task(first.run())
    await asyncio.sleep(5)
    other = asyncio.create_task(second.run())
    await asyncio.sleep(5)
    await stop(task)
    await first.leadership.release()
    released = now()
    await asyncio.sleep(5)
    assert second.led[0][0] - released <= TIMING.period
    await stop(other)


@pytest.mark.parametrize("fault", ["broken", "hanging"])
async def test_who_cannot_renew_stops_before_another_could_start(fault: str) -> None:
    store = Store()
    first = Candidate(store, "a")
    task = asyncio.create_task(first.run())
    await asyncio.sleep(21)
    setattr(store, fault, True)
    failed = now()
    await asyncio.wait_for(task, 60)
    assert now() - failed <= TIMING.renew_deadline < TIMING.duration - 2


async def test_a_short_outage_is_survived() -> None:
    store = Store()
    task = asyncio.create_task(Candidate(store, "a").run())
    await asyncio.sleep(21)
    store.broken = True
    await asyncio.sleep(5)
    store.broken = False
    await asyncio.sleep(60)
    assert not task.done()
    await stop(task)


async def test_who_finds_another_in_its_place_stops_at_once() -> None:
    store = Store()
    task = asyncio.create_task(Candidate(store, "a").run())
    await asyncio.sleep(21)
    assert store.spec is not None
    store.spec["holderIdentity"] = "thief"
    store.version += 1
    await asyncio.wait_for(task, TIMING.period + 1)
    assert store.holder == "thief"


async def test_two_that_start_together_never_lead_together() -> None:
    store = Store()
    candidates = [Candidate(store, name) for name in "abcd"]
    tasks = [asyncio.create_task(one.run()) for one in candidates]
    for _ in range(20):
        await asyncio.sleep(7)
        leading = [one for one in candidates if one.led and one.led[-1][1] is None]
        assert len(leading) <= 1
        if leading:
            number = candidates.index(leading[0])
            await stop(tasks[number])
            tasks[number] = asyncio.create_task(leading[0].run())
    await stop(*tasks)
