"""Reads on behalf of many: how many at once, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from taskqueue.controller.tasks.read_pool import ReadPool
from taskqueue.kubernetes.client import ApiError

pytestmark = pytest.mark.looptime

Key = tuple[str, str]
REFUSED = ApiError(403, "Forbidden", "no")


class Reader:
    """Takes a second for each read; ``answers`` says how those of a key end."""

    def __init__(self, at_once: int = 2) -> None:
        self.begun: list[tuple[float, Key]] = []
        self.under_way = 0
        self.most = 0
        self.answers: dict[Key, Callable[[], float | None]] = {}
        self.spawned: set[asyncio.Task[None]] = set()
        self.pool: ReadPool[Key] = ReadPool(
            self._read, what="things", at_once=at_once, longest_seconds=60.0, spawn=self._spawn
        )

    async def _read(self, key: Key) -> float | None:
        self.begun.append((round(asyncio.get_running_loop().time(), 2), key))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(1)
        self.under_way -= 1
        return self.answers.get(key, lambda: None)()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.spawned.add(task)
        task.add_done_callback(self.spawned.discard)
        return task


def refuse() -> None:
    raise REFUSED


def stumble() -> None:
    raise RuntimeError("a mistake")


async def test_no_more_are_read_at_once_than_allowed() -> None:
    reader = Reader(at_once=3)
    for number in range(10):
        reader.pool.request(("a", str(number)))
    await asyncio.sleep(60)
    assert (len(reader.begun), reader.most) == (10, 3)
    assert not reader.spawned


async def test_what_is_asked_for_often_is_read_once() -> None:
    reader = Reader()
    for _ in range(100):
        reader.pool.request(("a", "x"))
    await asyncio.sleep(0.5)
    reader.pool.request(("a", "x"))
    await asyncio.sleep(60)
    assert len(reader.begun) == 1


async def test_a_key_that_is_to_be_read_again_is_after_a_while() -> None:
    reader = Reader()
    reader.answers["a", "x"] = lambda: 5.0
    reader.pool.request(("a", "x"))
    await asyncio.sleep(30)
    assert [at for at, _ in reader.begun] == [0.0, 6.0, 17.0]
    reader.pool.discard(("a", "x"))
    await asyncio.sleep(300)
    assert len(reader.begun) == 3


async def test_what_is_asked_for_later_is_read_later() -> None:
    reader = Reader()
    reader.pool.request_later(("a", "x"), 9.0)
    reader.pool.request_later(("a", "y"), 4.0)
    await asyncio.sleep(60)
    assert reader.begun == [(4.0, ("a", "y")), (9.0, ("a", "x"))]


@pytest.mark.parametrize("how", [refuse, stumble])
async def test_a_namespace_whose_reads_fail_holds_up_no_other(how: Callable[[], None]) -> None:
    reader = Reader(at_once=1)
    for number in range(50):
        reader.answers["bad", str(number)] = how
        reader.pool.request(("bad", str(number)))
        reader.pool.request(("good", str(number)))
    await asyncio.sleep(60)
    assert sum(key[0] == "good" for _, key in reader.begun) == 50
    assert sum(key[0] == "bad" for _, key in reader.begun) < 10
    for number in range(50):
        del reader.answers["bad", str(number)]
    await asyncio.sleep(300)
    assert {key for _, key in reader.begun if key[0] == "bad"} == {
        ("bad", str(number)) for number in range(50)
    }
