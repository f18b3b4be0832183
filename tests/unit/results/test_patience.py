"""A result is written while its store is away for a while, and given up in time."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from taskqueue.results.patience import patiently, put_patiently
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import StoreError
from tests.unit.results.memory import MemoryStore

pytestmark = pytest.mark.looptime

RESULT = StoredResult(b"{}", "application/json")


async def test_a_store_that_comes_back_in_time_gets_the_result() -> None:
    store = MemoryStore(away_until=asyncio.get_running_loop().time() + 20)
    assert await put_patiently(store, "k", RESULT, seconds=60) == RESULT
    assert store.kept == {"k": RESULT}


async def test_a_store_that_stays_away_is_given_up_in_time() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    store = MemoryStore(away_until=start + 1000, call_seconds=3)
    with pytest.raises(StoreError, match="away"):
        await put_patiently(store, "k", RESULT, seconds=60)
    assert 40 < loop.time() - start <= 63
    assert 4 < len(store.calls) < 60


async def test_what_will_not_pass_is_not_tried_again() -> None:
    store = MemoryStore(away_until=asyncio.get_running_loop().time() + 1, transient=False)
    with pytest.raises(StoreError):
        await put_patiently(store, "k", RESULT)
    with pytest.raises(StoreError):
        await patiently(partial(store.get, "k"), "k", seconds=60)
    assert len(store.calls) == 2


async def test_a_result_that_is_read_is_waited_for_too() -> None:
    store = MemoryStore(away_until=asyncio.get_running_loop().time() + 5)
    store.kept["k"] = RESULT
    assert await patiently(partial(store.get, "k"), "k", seconds=60) == RESULT
    assert await patiently(partial(store.get, "other"), "other", seconds=60) is None
