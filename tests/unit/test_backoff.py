"""The delays before connecting again grow to a limit, with jitter, for as long as needed."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.backoff import FIRST_SECONDS, LIMIT_SECONDS, delays


def test_without_luck_the_bounds_double_up_to_the_limit() -> None:
    bounds = [round(delay, 3) for delay in islice(delays(lambda: 1.0), 8)]
    assert bounds == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_with_all_luck_a_delay_is_half_its_bound() -> None:
    assert next(delays(lambda: 0.0)) == FIRST_SECONDS / 2


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 3000))
def test_it_never_ends_and_never_exceeds_the_limit(luck: float, tries: int) -> None:
    delay = next(islice(delays(lambda: luck), tries, None))
    assert FIRST_SECONDS / 2 <= delay <= LIMIT_SECONDS
