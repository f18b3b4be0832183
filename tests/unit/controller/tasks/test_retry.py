import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.tasks.retry import backoff_seconds, next_wait_seconds
from taskqueue.model.task import RetryBackoff

backoffs = st.builds(
    RetryBackoff,
    initial_seconds=st.floats(0, 1000),
    factor=st.floats(1, 100),
    max_seconds=st.floats(0, 86_400),
    jitter=st.floats(0, 1),
)
randoms = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("failed", "expected"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (9, 256.0), (10, 300.0)]
)
def test_the_wait_doubles_up_to_the_cap(failed: int, expected: float) -> None:
    backoff = RetryBackoff(initial_seconds=1, factor=2, max_seconds=300, jitter=0)
    assert backoff_seconds(backoff, failed_attempts=failed, random=0.3) == pytest.approx(expected)


@given(backoffs, st.integers(1, 1000), randoms)
def test_the_wait_is_finite_never_negative_and_never_above_the_cap(
    backoff: RetryBackoff, failed: int, random: float
) -> None:
    wait = backoff_seconds(backoff, failed_attempts=failed, random=random)
    assert math.isfinite(wait)
    assert 0 <= wait <= backoff.max_seconds


@given(backoffs, st.integers(1, 50))
def test_without_jitter_the_wait_never_shrinks(backoff: RetryBackoff, failed: int) -> None:
    waits = [
        backoff_seconds(backoff, failed_attempts=count, random=0.5)
        for count in (failed, failed + 1)
    ]
    assert waits[0] <= waits[1] * (1 + 1e-9)


@given(st.floats(0.1, 100), st.floats(0, 1), randoms)
def test_jitter_stays_within_its_fraction(initial: float, jitter: float, random: float) -> None:
    backoff = RetryBackoff(initial_seconds=initial, factor=2, max_seconds=1e9, jitter=jitter)
    wait = backoff_seconds(backoff, failed_attempts=1, random=random)
    assert initial * (1 - jitter) - 1e-6 <= wait <= initial * (1 + jitter) + 1e-6


def test_retry_after_replaces_the_backoff() -> None:
    wait = next_wait_seconds(RetryBackoff(), failed_attempts=1, asked_seconds=42.0, random=0.5)
    assert wait == 42.0


@pytest.mark.parametrize("wish", [None, -1.0, math.inf, math.nan])
def test_an_invalid_retry_after_is_ignored(wish: float | None) -> None:
    wait = next_wait_seconds(
        RetryBackoff(jitter=0), failed_attempts=1, asked_seconds=wish, random=0.5
    )
    assert wait == 1.0
