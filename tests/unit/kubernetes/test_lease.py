"""Leader election in virtual time, with a Lease that conflicts, hangs and fails on demand."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, TypeVar

import pytest

from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.lease import (
    DONE_VERSION,
    EXIT_HUNG,
    LeaderElector,
    LeaseLock,
    LeaseTiming,
)
from taskqueue.logs import FIELDS

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

TIMING = LeaseTiming()

T = TypeVar("T")


class InMemoryLock(LeaseLock):
    """A Lease in memory, which conflicts as the API server does."""

    def __init__(self) -> None:
        # Not the base's: there is no client.
        self.spec: dict[str, Any] | None = None
        self.version = 0
        self.annotations: dict[str, str] = {}
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
        self.annotations = lease["metadata"]["annotations"]
        return self._put(spec)

    @property
    def holder(self) -> str | None:
        return None if self.spec is None else self.spec["holderIdentity"]

    def _put(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        self.spec, self.version = dict(spec), self.version + 1
        return self._lease()

    def _lease(self) -> dict[str, Any]:
        metadata = {"resourceVersion": self.version, "annotations": self.annotations}
        return {"metadata": metadata, "spec": dict(self.spec or {})}

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)
        if self.hanging:
            await asyncio.sleep(1e9)
        if self.broken:
            raise ApiError(500, "InternalError", "broken")


class FaultyLock(InMemoryLock):
    """A candidate's way to a Lease, with faults of its own."""

    FAULTS = ("", "", "broken", "hanging", "slow", "answers are lost", "answers are late")

    def __init__(self, shared: InMemoryLock, random: Random) -> None:
        super().__init__()
        self._shared, self._random = shared, random
        self.fault = ""

    async def read(self) -> dict[str, Any] | None:
        return await self._with_fault(self._shared.read)

    async def create(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        return await self._with_fault(partial(self._shared.create, spec))

    async def replace(self, lease: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        return await self._with_fault(partial(self._shared.replace, lease, spec))

    async def _with_fault(self, request: Callable[[], Awaitable[T]]) -> T:
        fault = self.fault
        if fault == "broken":
            raise ApiError(500, "InternalError", "broken")
        if fault == "hanging":
            await asyncio.sleep(1e9)
        if fault == "slow":
            await asyncio.sleep(self._random.uniform(0, 3))
        answer = await request()
        if fault == "answers are lost":
            await asyncio.sleep(1e9)
        if fault == "answers are late":
            await asyncio.sleep(self._random.uniform(0, 3))
        return answer


class Candidate:
    """A process that leads whenever it can, and records when it did."""

    def __init__(self, lock: InMemoryLock, name: str) -> None:
        self.elector = LeaderElector(
            lock, name, timing=TIMING, clock=now, end_process=lambda code: None
        )
        self.led: list[tuple[float, float | None]] = []

    async def run(self) -> None:
        await self.elector.acquire()
        self.led.append((now(), None))
        try:
            await self.elector.renew_until_lost()
        finally:
            self.led[-1] = (self.led[-1][0], now())


def now() -> float:
    return asyncio.get_running_loop().time()


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_first_candidate_leads_and_keeps_leading() -> None:
    lock = InMemoryLock()
    task = asyncio.create_task(Candidate(lock, "a").run())
    await asyncio.sleep(100)
    assert lock.holder == "a"
    assert not task.done()
    await stop(task)


async def test_second_candidate_waits_while_the_first_renews() -> None:
    lock = InMemoryLock()
    first, second = Candidate(lock, "a"), Candidate(lock, "b")
    tasks = [asyncio.create_task(one.run()) for one in (first, second)]
    await asyncio.sleep(200)
    assert len(first.led) + len(second.led) == 1
    await stop(*tasks)


async def test_second_candidate_leads_after_the_duration_when_the_first_dies() -> None:
    lock = InMemoryLock()
    first, second = Candidate(lock, "a"), Candidate(lock, "b")
    task = asyncio.create_task(first.run())
    await asyncio.sleep(20)
    other = asyncio.create_task(second.run())
    await asyncio.sleep(20)
    await stop(task)
    died = now()
    await asyncio.sleep(30)
    assert lock.holder == "b"
    assert TIMING.duration - TIMING.period <= second.led[0][0] - died <= TIMING.duration + 1
    await stop(other)


async def test_released_lease_is_acquired_at_once() -> None:
    lock = InMemoryLock()
    first, second = Candidate(lock, "a"), Candidate(lock, "b")
    task = asyncio.create_task(first.run())
    await asyncio.sleep(5)
    other = asyncio.create_task(second.run())
    await asyncio.sleep(5)
    await stop(task)
    await first.elector.release()
    released = now()
    await asyncio.sleep(5)
    assert second.led[0][0] - released <= TIMING.period
    await stop(other)


@pytest.mark.parametrize("fault", ["broken", "hanging"])
async def test_leader_that_cannot_renew_stops_before_another_could_start(fault: str) -> None:
    lock = InMemoryLock()
    first = Candidate(lock, "a")
    task = asyncio.create_task(first.run())
    await asyncio.sleep(21)
    setattr(lock, fault, True)
    failed = now()
    await asyncio.wait_for(task, 60)
    assert now() - failed <= TIMING.renew_deadline < TIMING.duration


async def test_leader_survives_a_short_outage() -> None:
    lock = InMemoryLock()
    task = asyncio.create_task(Candidate(lock, "a").run())
    await asyncio.sleep(21)
    lock.broken = True
    await asyncio.sleep(TIMING.renew_deadline - 2 * TIMING.period)
    lock.broken = False
    await asyncio.sleep(60)
    assert not task.done()
    await stop(task)


async def test_leader_stops_at_once_when_another_holds_the_lease() -> None:
    lock = InMemoryLock()
    task = asyncio.create_task(Candidate(lock, "a").run())
    await asyncio.sleep(21)
    assert lock.spec is not None
    lock.spec["holderIdentity"] = "thief"
    lock.version += 1
    await asyncio.wait_for(task, TIMING.period + 1)
    assert lock.holder == "thief"


async def test_candidates_never_lead_together() -> None:
    lock = InMemoryLock()
    candidates = [Candidate(lock, name) for name in "abcd"]
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


@pytest.mark.parametrize("seed", range(6))
async def test_never_two_lead_whatever_fails(seed: int) -> None:
    random, shared = Random(seed), InMemoryLock()
    locks = [FaultyLock(shared, random) for _ in range(3)]
    candidates = [Candidate(lock, str(number)) for number, lock in enumerate(locks)]
    tasks = [asyncio.create_task(one.run()) for one in candidates]
    #: Those that were killed count as long as they would have believed to lead.
    everyone = list(candidates)
    led = 0
    for step in range(300):
        await asyncio.sleep(random.uniform(0.05, 0.6))
        leading = [one for one in everyone if one.elector.is_leader]
        assert len(leading) <= 1, f"after {step} steps"
        led += len(leading)
        number = random.randrange(3)
        if random.random() < 0.15:
            locks[number].fault = random.choice(FaultyLock.FAULTS)
        elif random.random() < 0.05 or tasks[number].done():
            await stop(tasks[number])
            if random.random() < 0.5:
                await candidates[number].elector.release()
            candidates[number] = Candidate(locks[number], f"{number} from {step}")
            everyone.append(candidates[number])
            tasks[number] = asyncio.create_task(candidates[number].run())
    await stop(*tasks)
    assert led > 30


@pytest.mark.parametrize(
    ("duration", "renew_deadline", "period"), [(6, 6.0, 1.0), (6, 5.7, 1.0), (6, 5.0, 2.0)]
)
async def test_times_that_are_not_safe_are_refused(
    duration: int, renew_deadline: float, period: float
) -> None:
    with pytest.raises(ValueError, match="LeaseTiming"):
        LeaseTiming(duration=duration, renew_deadline=renew_deadline, period=period)


async def test_watchdog_counts_from_before_the_request_that_was_late() -> None:
    lock = FaultyLock(InMemoryLock(), Random(3))
    elector = LeaderElector(lock, "a", timing=TIMING)
    lock.fault = "answers are late"
    asked = now()
    while not elector.is_leader:
        await elector.acquire()
    late = now() - asked
    assert late > 0.5
    left = elector._watchdog_deadline - time.monotonic()
    assert left <= TIMING.renew_deadline - late + TIMING.period  # it may have asked twice


@pytest.mark.looptime(False)
async def test_watchdog_says_where_the_loop_hangs_and_ends_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[int] = []

    def what_hangs() -> None:
        while not ended:
            time.sleep(0.01)

    async def lead() -> None:
        timing = LeaseTiming(duration=1, renew_deadline=0.5, period=0.1)
        elector = LeaderElector(InMemoryLock(), "a", timing=timing, end_process=ended.append)
        await elector.acquire()
        renewing = asyncio.create_task(elector.renew_until_lost())
        await asyncio.sleep(0.2)
        assert not ended
        what_hangs()
        await stop(renewing)

    await asyncio.to_thread(asyncio.run, lead())
    assert ended == [EXIT_HUNG]
    (hung,) = (one for one in caplog.records if one.getMessage() == "leader.loop_hung")
    fields = getattr(hung, FIELDS)
    assert fields["identity"] == "a"
    assert any(call.startswith("what_hangs (") for call in fields["where"][:2])


async def test_the_lease_says_up_to_where_its_holder_has_dealt_with_everything() -> None:
    lock = InMemoryLock()
    first = LeaderElector(lock, "first", clock=now)
    await first.acquire()
    assert first.done_version == ""
    renewing = asyncio.create_task(first.renew_until_lost())
    await asyncio.sleep(30.5)
    settled = int(lock.annotations[DONE_VERSION])
    assert 8 <= lock.version - settled <= 12
    first.is_settled = lambda: False
    await asyncio.sleep(20)
    assert int(lock.annotations[DONE_VERSION]) <= settled + 1
    stuck = lock.annotations[DONE_VERSION]
    renewing.cancel()
    second = LeaderElector(lock, "second", clock=now)
    await second.acquire()
    assert second.done_version == lock.annotations[DONE_VERSION] == stuck
    await second.release()
    third = LeaderElector(lock, "third", clock=now)
    await third.acquire()
    assert third.done_version == stuck
