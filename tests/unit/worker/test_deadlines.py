"""One timer for many deadlines, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from taskqueue.worker.deadlines import Deadlines

pytestmark = pytest.mark.looptime


class Seen:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: list[tuple[str, float]] = []
        self.deadlines: Deadlines[str] = Deadlines(self.loop, self.note)
        self.start = self.loop.time()

    def note(self, key: str) -> None:
        self.calls.append((key, round(self.loop.time() - self.start, 3)))

    def set(self, key: str, seconds: float) -> None:
        self.deadlines.set(key, self.start + seconds)


async def test_each_is_called_once_at_its_time_in_whatever_order_they_were_set() -> None:
    seen = Seen()
    for key, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("b2", 2.0)):
        seen.set(key, seconds)
    await asyncio.sleep(10)
    assert seen.calls == [("a", 1.0), ("b", 2.0), ("b2", 2.0), ("c", 3.0)]


async def test_a_dropped_one_is_not_called_and_a_moved_one_at_its_new_time() -> None:
    seen = Seen()
    seen.set("dropped", 1.0)
    seen.set("moved", 1.0)
    seen.deadlines.drop("dropped")
    seen.deadlines.drop("never set")
    seen.set("moved", 4.0)
    await asyncio.sleep(10)
    assert seen.calls == [("moved", 4.0)]


async def test_a_call_may_set_the_next() -> None:
    seen = Seen()

    def again(key: str) -> None:
        seen.note(key)
        if len(seen.calls) < 3:
            deadlines.set(key, seen.loop.time() + 0.5)

    deadlines: Deadlines[str] = Deadlines(seen.loop, again)
    deadlines.set("a", seen.start + 0.5)
    await asyncio.sleep(10)
    assert seen.calls == [("a", 0.5), ("a", 1.0), ("a", 1.5)]


async def test_a_call_that_raises_or_sets_another_takes_away_no_deadline() -> None:
    seen = Seen()
    errors: list[object] = []
    seen.loop.set_exception_handler(lambda loop, context: errors.append(context["exception"]))

    def note(key: str) -> None:
        seen.note(key)
        if key == "raises":
            raise RuntimeError(key)
        if key == "sets":
            deadlines.set("late", seen.start + 9)

    deadlines: Deadlines[str] = Deadlines(seen.loop, note)
    for key, seconds in (("raises", 1.0), ("beside", 1.0), ("sets", 2.0), ("next", 3.0)):
        deadlines.set(key, seen.start + seconds)
    await asyncio.sleep(10)
    expected = [("raises", 1.0), ("beside", 1.0), ("sets", 2.0), ("next", 3.0), ("late", 9.0)]
    assert seen.calls == expected
    assert len(errors) == 1


async def test_nothing_is_called_after_close() -> None:
    seen = Seen()
    seen.set("a", 1.0)
    seen.deadlines.close()
    await asyncio.sleep(10)
    assert seen.calls == []


def test_on_uvloop_a_deadline_that_has_come_does_not_keep_another_from_being_set() -> None:
    """There `call_at` returns no timer for it, but a handle that does not know its time."""
    calls: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines: Deadlines[str] = Deadlines(loop, calls.append)
        deadlines.set("past", loop.time() - 1)
        deadlines.set("earlier still", loop.time() - 2)
        deadlines.set("now", loop.time())
        await asyncio.sleep(0.05)

    uvloop.run(main())
    assert sorted(calls) == ["earlier still", "now", "past"]
