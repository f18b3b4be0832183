"""Payloads in memory: never above the budget, and the ones that are needed next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.tasks.payload_cache import _ENTRY_BYTES, PayloadCache

#: Room for three payloads of ten bytes.
BUDGET = 3 * (10 + _ENTRY_BYTES)
TEN = b"0123456789"


def kept(cache: PayloadCache) -> str:
    return "".join(uid for uid in "abcdefgh" if uid in cache)


def test_what_came_first_is_kept() -> None:
    cache = PayloadCache(BUDGET)
    for uid in "abcde":
        cache.offer(uid, TEN)
    assert kept(cache) == "abc"


def test_what_is_dispatched_takes_the_room_of_what_came_last() -> None:
    cache = PayloadCache(BUDGET)
    for uid in "abc":
        cache.offer(uid, TEN)
    cache.put("d", TEN)
    assert kept(cache) == "abd"


def test_what_is_published_goes_first() -> None:
    cache = PayloadCache(BUDGET)
    for uid in "abc":
        cache.offer(uid, TEN)
    cache.mark_published("b")
    cache.mark_published("a")
    cache.offer("d", TEN)
    assert kept(cache) == "acd"
    cache.put("e", TEN)
    assert kept(cache) == "cde"
    cache.mark_published("unknown")


def test_one_above_the_budget_is_kept_alone_when_it_is_dispatched() -> None:
    cache = PayloadCache(BUDGET)
    cache.offer("a", TEN)
    cache.offer("b", TEN * 100)
    assert kept(cache) == "a"
    cache.put("b", TEN * 100)
    assert kept(cache) == "b"
    cache.put("c", TEN)
    assert kept(cache) == "c"


uids = st.sampled_from("abcdefgh")
steps = st.lists(
    st.tuples(st.sampled_from(["offer", "put", "publish", "discard"]), uids, st.integers(0, 400))
)


@given(steps, st.integers(0, 1500))
def test_a_cache_keeps_what_it_was_given_and_stays_in_its_budget(
    steps: list[tuple[str, str, int]], budget: int
) -> None:
    cache, given = PayloadCache(budget), dict[str, bytes]()
    for number, (what, uid, size) in enumerate(steps):
        payload = str(number).encode().ljust(size, b".")
        match what:
            case "offer":
                cache.offer(uid, payload)
                given[uid] = payload
            case "put":
                cache.put(uid, payload)
                given[uid] = payload
                assert cache.get(uid) == payload, "what is dispatched next is not at hand"
            case "publish":
                cache.mark_published(uid)
            case "discard":
                cache.discard(uid)
                assert uid not in cache
        found = {uid: cache.get(uid) for uid in given if uid in cache}
        assert all(given[uid] == payload for uid, payload in found.items())
        assert cache.bytes == sum(len(one or b"") + _ENTRY_BYTES for one in found.values())
        assert cache.bytes <= budget or len(found) == 1
    for uid in given:
        cache.discard(uid)
    assert cache.bytes == 0
