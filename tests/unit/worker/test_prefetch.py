"""When more deliveries are prefetched than there are slots, and when no longer."""

from __future__ import annotations

import pytest

from taskqueue.worker.prefetch import (
    AHEAD,
    CAUTION_SECONDS,
    ENOUGH_RUNS,
    PrefetchRule,
)


def after_runs(rule: PrefetchRule, count: int, seconds: float) -> PrefetchRule:
    for _ in range(count):
        rule.on_run_ended(seconds)
    return rule


def raised(slots: int = 2) -> PrefetchRule:
    rule = after_runs(PrefetchRule(slots), 2 * ENOUGH_RUNS, 0.001)
    assert rule.update(0) == max(slots, AHEAD)
    return rule


def test_nothing_is_fetched_ahead_before_enough_runs_were_seen() -> None:
    rule = PrefetchRule(2)
    for _ in range(ENOUGH_RUNS - 1):
        rule.on_run_ended(0.0)
        assert rule.update(0) == 2
    rule.on_run_ended(0.0)
    assert rule.update(0) == AHEAD


def test_more_slots_than_the_bound_fetch_as_many_as_there_are() -> None:
    assert raised(slots=AHEAD + 36).update(0) == AHEAD + 36


@pytest.mark.parametrize(("seconds", "expected"), [(0.02, AHEAD), (0.03, 2), (0.06, 2)])
def test_only_short_runs_raise_it(seconds: float, expected: int) -> None:
    assert after_runs(PrefetchRule(2), 1000, seconds).update(0) == expected


def test_between_the_bounds_it_stays_as_it_is() -> None:
    assert after_runs(raised(), 1000, 0.04).update(0) == AHEAD


def test_runs_that_are_no_longer_short_lower_it() -> None:
    rule = raised()
    for _ in range(1000):
        rule.on_run_ended(0.06)
        if rule.update(0) == 2:
            return
    pytest.fail("still fetched ahead")


def test_one_run_that_does_not_end_lowers_it_at_once_and_short_ones_raise_it_again() -> None:
    rule = raised()
    rule.on_long_run(0.5)
    assert rule.update(0) == 2
    after_runs(rule, ENOUGH_RUNS, 0.0)
    assert rule.update(0) == 2, "the long one still counts in the mean"
    after_runs(rule, 200, 0.0)
    assert rule.update(0) == AHEAD


def test_after_a_redelivery_nothing_is_fetched_ahead_for_a_while() -> None:
    rule = raised()
    rule.on_redelivery(100.0)
    after_runs(rule, 1000, 0.0)
    assert rule.update(100.0 + CAUTION_SECONDS - 0.1) == 2
    assert rule.update(100.0 + CAUTION_SECONDS) == AHEAD


def test_a_redelivery_before_the_first_raise_counts_too() -> None:
    rule = PrefetchRule(2)
    rule.on_redelivery(0.0)
    assert after_runs(rule, 1000, 0.0).update(1.0) == 2
