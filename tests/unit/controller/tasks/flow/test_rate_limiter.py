"""Rate limits: never above the rate in any time, and never idle while an attempt may pass."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.tasks.flow.rate_limiter import RateLimiter
from taskqueue.model.flow import RateLimit

limits = st.lists(
    st.builds(
        RateLimit,
        name=st.just("limit"),
        per_key=st.booleans(),
        attempts=st.integers(1, 20),
        period_seconds=st.integers(1, 60),
        burst=st.integers(1, 6),
    ),
    min_size=1,
    max_size=3,
)
KEYS = ("a", "b")
#: Pauses between tries, and the key that tries.
tries = st.lists(st.tuples(st.floats(0, 20), st.sampled_from(KEYS)), max_size=80)


def limiter(*limits: RateLimit, since: float = 0.0) -> RateLimiter:
    rates = RateLimiter()
    rates.configure(limits, since)
    return rates


@settings(deadline=None)
@given(limits, tries)
def test_no_window_has_more_attempts_than_burst_and_rate_allow(
    limits: list[RateLimit], tries: list[tuple[float, str]]
) -> None:
    rates = limiter(*limits)
    now, taken = 0.0, list[tuple[float, str]]()
    for pause, key in tries:
        now += pause
        if rates.take(key, now):
            taken.append((now, key))
    for limit, key in itertools.product(limits, KEYS):
        times = [at for at, one in taken if one == key or not limit.per_key]
        for first, last in itertools.combinations(range(len(times)), 2):
            seconds = times[last] - times[first]
            assert last - first + 1 <= limit.burst + seconds / limit.interval + 1e-3


@settings(deadline=None)
@given(limits, tries)
def test_an_attempt_may_pass_when_the_limiter_says_so_and_not_before(
    limits: list[RateLimit], tries: list[tuple[float, str]]
) -> None:
    rates = limiter(*limits)
    now = 0.0
    for pause, key in tries:
        now += pause
        wait = rates.wait_seconds(key, now)
        assert rates.wait_seconds_of_all(now) <= wait
        if wait > 1e-3:
            assert not rates.take(key, now + wait - 1e-3)
        now += wait
        assert rates.take(key, now)


@settings(deadline=None)
@given(limits)
def test_any_whole_period_has_the_attempts_it_may_have(limits: list[RateLimit]) -> None:
    """With one limit alone: all of the rate is used by who always asks."""
    limit = limits[0]
    rates = limiter(limit)
    now, times = 0.0, list[float]()
    while now < 3 * limit.period_seconds:
        now += rates.wait_seconds("a", now)
        assert rates.take("a", now)
        times.append(now)
    passed = sum(at <= limit.period_seconds + 1e-3 for at in times)
    assert passed in (limit.attempts, limit.attempts + 1)  # the bucket was empty


def test_a_bucket_is_empty_at_first_and_fills_up_to_its_burst() -> None:
    limit = RateLimit(name="api", attempts=6, period_seconds=60, burst=3)
    rates = limiter(limit, since=1000.0)
    assert rates.wait_seconds("a", 1000.0) == pytest.approx(10.0)
    assert [rates.take("a", 1100.0) for _ in range(4)] == [True, True, True, False]
    assert rates.blocking("a", 1100.0) == "api"


def test_an_unchanged_limit_keeps_its_bucket_when_another_is_changed() -> None:
    slow = RateLimit(name="slow", attempts=1, period_seconds=60)
    rates = limiter(slow)
    assert rates.take("a", 60.0)
    rates.configure([slow, RateLimit(name="fast", attempts=60, period_seconds=60)], 61.0)
    assert rates.wait_seconds("a", 61.0) == pytest.approx(59.0)


def test_full_buckets_are_not_kept() -> None:
    rates = limiter(RateLimit(name="each", per_key=True, attempts=60, period_seconds=60))
    for number in range(10_000):
        assert rates.take(f"key-{number}", 60.0 + number)
    assert len(rates._buckets[0]._full_at) < 200
