"""The outcomes of tokens that ended lately."""

from __future__ import annotations

from taskqueue.worker.outcome_cache import CachedOutcome, OutcomeCache


def outcome(size: int = 1) -> CachedOutcome:
    return CachedOutcome("shop.q.task.succeeded", b"x" * size)


def test_the_first_outcome_of_a_token_stays() -> None:
    finished = OutcomeCache()
    first = outcome()
    finished.add("a", first)
    finished.add("a", outcome(2))
    assert finished.get("a") is first
    assert finished.get("b") is None


def test_the_oldest_are_dropped_beyond_the_number() -> None:
    finished = OutcomeCache(tokens=2)
    for token in ("a", "b", "c"):
        finished.add(token, outcome())
    assert [finished.get(token) is None for token in ("a", "b", "c")] == [True, False, False]


def test_the_oldest_are_dropped_beyond_the_bytes() -> None:
    finished = OutcomeCache(body_bytes=10)
    finished.add("a", outcome(6))
    finished.add("b", outcome(4))
    assert len(finished) == 2
    finished.add("c", outcome(1))
    assert finished.get("a") is None
    assert len(finished) == 2
    finished.add("d", outcome(11))
    assert len(finished) == 0
