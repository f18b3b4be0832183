"""What waits for a write that fails: its object, perhaps its namespace, nobody else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.status_updater import (
    CONCURRENCY,
    LONGEST_PAUSE_SECONDS,
    StatusUpdater,
    WriteRefused,
    WriteResult,
    Written,
)
from taskqueue.kubernetes.write_turns import CLOGGED, NAMESPACE_FAILURES
from tests.unit.controller.virtual_time import until_time
from tests.unit.kubernetes.fake_status_api import Answer, FakeStatusApi, path_of

pytestmark = pytest.mark.looptime

SLOW = Answer(0, seconds=15.0)
FORBIDDEN = Answer(403)
TOO_LARGE = Answer(500, message="etcdserver: request is too large")
HOUR = 3600.0


class Case:
    def __init__(self) -> None:
        self.api = FakeStatusApi()
        self.failures: list[ApiError] = []
        self.updater = StatusUpdater(
            cast(ApiClient, self.api), on_failure=self.failures.append, random=lambda: 0.5
        )
        self.results: dict[str, list[WriteResult]] = {}

    def put(
        self,
        namespace: str,
        name: str | int,
        number: int = 1,
        *,
        urgent: bool = False,
        always: Answer | None = None,
    ) -> str:
        path = path_of(namespace, name)
        if always is not None:
            self.api.always[path] = always
        results = self.results.setdefault(path, [])
        self.updater.put(path, b"%d" % number, results.append, urgent=urgent)
        return path

    def put_many(self, namespace: str, count: int, answer: Answer, *, urgent: bool = False) -> None:
        for name in range(count):
            self.put(namespace, name, always=answer, urgent=urgent)

    def answer(self, namespace: str, answer: Answer) -> None:
        """Answer alike for all objects of a namespace from now on."""
        for path in self.api.always:
            if f"/{namespace}/" in path:
                self.api.always[path] = answer

    def times(self, part: str) -> list[float]:
        """When requests for such paths began."""
        return [round(at, 2) for at, path in self.api.requests if part in path]

    async def written_within(self, path: str, seconds: float) -> None:
        begun = asyncio.get_running_loop().time()
        while path not in self.api.written:
            await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - begun <= seconds, f"{path} waits"


def pauses_between(times: list[float]) -> list[float]:
    return [round(after - before, 1) for before, after in itertools.pairwise(times)]


@asynccontextmanager
async def at_work() -> AsyncIterator[Case]:
    case = Case()
    running = asyncio.create_task(case.updater.run())
    try:
        yield case
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("answer", [FORBIDDEN, SLOW, Answer(500), Answer(409), Answer(-1)])
async def test_as_many_failing_objects_as_writers_hold_up_no_other_namespace(
    answer: Answer,
) -> None:
    async with at_work() as case:
        case.put_many("bad", CONCURRENCY + 1, answer, urgent=True)
        await asyncio.sleep(20)  # the first answers have come
        for number in range(200):
            await case.written_within(case.put("good", number), 0.1)
            await asyncio.sleep(1)


async def test_thousands_of_failing_objects_leave_the_others_their_turns() -> None:
    async with at_work() as case:
        for namespace in range(100):
            case.put_many(f"bad{namespace}", 50, SLOW, urgent=True)
        paths = [case.put("good", number) for number in range(100)]
        # Each of the 100 may keep all writers busy once, until it is held up.
        await asyncio.sleep(100 * 15.0)
        assert all(path in case.api.written for path in paths)
        assert case.api.most_failing_in_flight <= CONCURRENCY // 4


@pytest.mark.parametrize("urgent", [False, True])
async def test_namespaces_take_turns(urgent: bool) -> None:
    async with at_work() as case:
        for namespace in range(3):
            case.put_many(f"busy{namespace}", 1000, Answer(seconds=1.0), urgent=urgent)
        for number in range(20):
            await case.written_within(case.put("other", number, urgent=urgent), 1.1)


async def test_too_large_statuses_are_refused_and_not_tried_again() -> None:
    async with at_work() as case:
        case.put_many("bad", 17, TOO_LARGE)
        await case.written_within(case.put("bad", "fits"), 0.1)
        refused = [WriteRefused(500, TOO_LARGE.message)]
        assert list(case.results.values())[:17] == [refused] * 17
        assert not len(case.updater)
        assert not case.failures


async def test_an_objects_pauses_grow_to_a_minute_and_start_over_after_a_success() -> None:
    async with at_work() as case:
        path = case.put("ns", "t", always=FORBIDDEN)
        await asyncio.sleep(HOUR)
        times = case.times("/t/")
        pauses = pauses_between(times)
        assert pauses[:5] == pytest.approx([0.1, 0.2, 0.3, 0.6, 1.2], abs=0.1)
        assert pauses[-1] == pytest.approx(45.0, abs=0.1)
        assert pauses == sorted(pauses)
        assert case.updater.failing == 1
        case.answer("ns", Answer())
        await case.written_within(path, 60)
        assert case.updater.failing == 0
        case.answer("ns", FORBIDDEN)
        before = len(case.times("/t/"))
        case.put("ns", "t", 2)
        await asyncio.sleep(0.2)
        assert len(case.times("/t/")) - before == 2


async def test_everything_is_written_soon_when_the_api_server_is_back() -> None:
    async with at_work() as case:
        for namespace in range(50):
            case.put_many(f"ns{namespace}", 20, Answer(503))
        await asyncio.sleep(260)
        case.api.always.clear()
        await asyncio.sleep(15)
        assert len(case.api.written) == 50 * 20


async def test_the_newest_status_is_written_when_the_turn_comes_and_each_callback_called() -> None:
    async with at_work() as case:
        path = case.put("ns", "t", 1, always=FORBIDDEN)
        for number in range(2, 6):
            await asyncio.sleep(3)
            case.put("ns", "t", number)
        case.answer("ns", Answer())
        await case.written_within(path, 60)
        await asyncio.sleep(0)
        assert case.api.written == {path: 5}
        assert case.results[path] == [Written(1, 5)] * 5


async def test_a_success_forgets_the_failures_though_a_newer_status_waits() -> None:
    async with at_work() as case:
        path = case.put("ns", "t", 1)
        case.api.answers[path].extend([FORBIDDEN] * 8 + [Answer(seconds=1.0), FORBIDDEN])
        await asyncio.sleep(19.7)
        assert len(case.times("/t/")) == 9
        case.put("ns", "t", 2)  # while the first is being written
        await asyncio.sleep(1.3)
        assert len(case.times("/t/")) == 11
        assert case.api.written == {path: 2}
        assert case.updater.failing == 0


async def test_a_failing_namespace_has_one_write_at_a_time_with_growing_pauses() -> None:
    async with at_work() as case:
        case.put_many("bad", 1000, FORBIDDEN)
        await asyncio.sleep(1)
        before = len(case.times("/bad/"))
        assert before <= CONCURRENCY + NAMESPACE_FAILURES + 5
        case.api.most_in_flight = 0
        await asyncio.sleep(HOUR)
        assert case.api.most_in_flight == 1
        times = case.times("/bad/")[before:]
        pauses = pauses_between(times)
        assert pauses == sorted(pauses)
        assert pauses[-1] == pytest.approx(45.0, abs=0.1)


async def test_a_namespace_of_many_failing_objects_is_clogged_until_it_is_answered() -> None:
    async with at_work() as case:
        case.put_many("bad", CLOGGED - 1, FORBIDDEN)
        case.put_many("good", 1000, Answer())
        assert not case.updater.clogged  # they only wait for their turns
        await asyncio.sleep(HOUR)
        assert not case.updater.clogged
        case.put("bad", "more", always=FORBIDDEN)
        assert case.updater.clogged == {"bad"}
        await asyncio.sleep(HOUR)
        case.answer("bad", Answer())
        await asyncio.sleep(60)
        assert not case.updater.clogged


async def test_a_namespace_where_only_some_are_written_is_clogged_by_the_others() -> None:
    async with at_work() as case:
        for number in range(CLOGGED):
            case.put("ns", f"bad{number}", always=FORBIDDEN)
            await case.written_within(case.put("ns", f"good{number}"), 0.1)
        assert case.updater.clogged == {"ns"}
        case.answer("ns", Answer())
        await asyncio.sleep(120)
        assert not case.updater.clogged


async def test_a_namespace_that_is_answered_again_is_written_at_full_speed() -> None:
    async with at_work() as case:
        case.put_many("bad", 1000, FORBIDDEN)
        await asyncio.sleep(HOUR)
        case.answer("bad", Answer())
        await asyncio.sleep(60)  # the next probe
        assert len(case.api.written) >= 1000 - CONCURRENCY
        await asyncio.sleep(60)
        assert len(case.api.written) == 1000
        assert not len(case.updater)


async def test_a_failing_namespace_is_probed_with_a_status_that_has_not_failed() -> None:
    async with at_work() as case:
        case.put_many("ns", NAMESPACE_FAILURES, FORBIDDEN)
        await asyncio.sleep(HOUR)
        await case.written_within(case.put("ns", "good"), 60.0)


async def test_objects_that_always_fail_hold_up_no_other_of_their_namespace() -> None:
    async with at_work() as case:
        for number in range(50):  # or the first ones would have it held up until then
            case.put("ns", f"bad{number}", always=FORBIDDEN)
            await case.written_within(case.put("ns", f"good{number}"), 0.1)
        await asyncio.sleep(300)
        for number in range(100):
            await case.written_within(case.put("ns", f"late{number}"), 0.1)
            await asyncio.sleep(1)


@pytest.mark.parametrize("asked", [0.5, 3.0, 3600.0])
async def test_429_pauses_all_writes_as_long_as_asked_within_a_limit(asked: float) -> None:
    async with at_work() as case:
        case.put("a", "t", always=Answer(429, retry_after=asked))
        await asyncio.sleep(0.1)
        case.put("b", "t")
        pause = min(asked, LONGEST_PAUSE_SECONDS)
        await until_time(pause)
        assert not case.times("/b/")
        await until_time(pause + 0.02)
        assert len(case.times("/b/")) == 1


async def test_an_object_does_not_wait_for_as_long_as_a_429_asks_without_limit() -> None:
    async with at_work() as case:
        path = case.put("ns", "t")
        case.api.answers[path].append(Answer(429, retry_after=86_400.0))
        await case.written_within(path, 61.0)


async def test_objects_that_always_get_429_do_not_pause_the_others_again() -> None:
    async with at_work() as case:
        case.put_many("busy", 50, Answer(429, retry_after=1.0))
        await asyncio.sleep(2)
        for number in range(300):
            # At first it may be the server that is busy.
            await case.written_within(case.put("good", number), 0.1 if number > 2 else 3.0)
            await asyncio.sleep(0.5)


async def test_429_pauses_all_writes_for_as_long_as_nothing_is_written() -> None:
    async with at_work() as case:
        case.put("a", "t", always=Answer(429, retry_after=5.0))
        await until_time(6)
        case.put("b", "t")
        await until_time(9.9)
        assert len(case.times("/a/")) == 2
        assert not case.times("/b/")
        await until_time(10.1)
        assert case.times("/b/")


async def test_a_429_to_another_object_pauses_all_writes() -> None:
    async with at_work() as case:
        await case.written_within(case.put("good", 1), 0.1)
        case.put("a", "t", always=Answer(429, retry_after=5.0))
        await asyncio.sleep(0.1)
        late = case.put("good", 2)
        await asyncio.sleep(4)
        assert late not in case.api.written


async def test_drain_tries_at_once_what_waits_and_gives_up_what_fails_again() -> None:
    async with at_work() as case:
        case.put_many("bad", 100, FORBIDDEN)
        case.put_many("back", 30, FORBIDDEN)
        case.put("alone", "t", always=FORBIDDEN)
        await asyncio.sleep(HOUR)
        case.answer("back", Answer())
        case.answer("alone", Answer())
        begun = asyncio.get_running_loop().time()
        await case.updater.drain(5)
        assert asyncio.get_running_loop().time() - begun < 1
        assert len(case.api.written) == 31


async def test_drain_waits_for_a_second_and_a_third_try() -> None:
    async with at_work() as case:
        path = case.put("ns", "t")
        case.api.answers[path].extend([Answer(503), Answer(503)])
        await case.updater.drain(5)
        assert path in case.api.written


async def test_nothing_is_kept_of_what_is_written() -> None:
    async with at_work() as case:
        for namespace in range(20):
            case.put_many(f"ns{namespace}", 10, FORBIDDEN)
        await asyncio.sleep(300)
        case.api.always.clear()
        await asyncio.sleep(120)
        assert not case.updater.clogged
        left = (case.updater._pending, case.updater._namespaces, case.updater._turns)
        assert not any(left)
        assert case.updater._turns._risky == case.updater._in_flight == 0
