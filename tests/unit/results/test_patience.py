"""A result is written while its store is away for a while, and given up in time."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.results.patience import put_patiently
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import StoreError

pytestmark = pytest.mark.looptime

RESULT = StoredResult(b"{}", "application/json")


class Store:
    """Fails until a moment of virtual time, each call after a while."""

    def __init__(self, *, away_until: float, transient: bool = True, call_seconds: float = 0.0):
        self.away_until = away_until
        self.transient = transient
        self.call_seconds = call_seconds
        self.calls: list[float] = []
        self.written: dict[str, StoredResult] = {}

    async def put(self, key: str, result: StoredResult) -> None:
        now = asyncio.get_running_loop().time()
        self.calls.append(now)
        await asyncio.sleep(self.call_seconds)
        if now < self.away_until:
            raise StoreError("away", transient=self.transient)
        self.written[key] = result

    async def get(self, key: str) -> StoredResult | None:
        raise NotImplementedError

    async def delete_before(self, prefix: str, moment: float) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def test_a_store_that_comes_back_in_time_gets_the_result() -> None:
    store = Store(away_until=asyncio.get_running_loop().time() + 20)
    await put_patiently(store, "k", RESULT, seconds=60)
    assert store.written == {"k": RESULT}


async def test_a_store_that_stays_away_is_given_up_in_time() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    store = Store(away_until=start + 1000, call_seconds=3)
    with pytest.raises(StoreError, match="away"):
        await put_patiently(store, "k", RESULT, seconds=60)
    assert 40 < loop.time() - start <= 63
    assert 4 < len(store.calls) < 60


async def test_what_will_not_pass_is_not_tried_again() -> None:
    store = Store(away_until=asyncio.get_running_loop().time() + 1, transient=False)
    with pytest.raises(StoreError):
        await put_patiently(store, "k", RESULT)
    assert len(store.calls) == 1
