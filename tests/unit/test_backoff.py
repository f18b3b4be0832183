"""Delays of retry loops grow to a limit, with jitter, and start over after a success that held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.backoff import FIRST_SECONDS, LONGEST_SECONDS, Backoff


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_bounds_double_up_to_the_longest() -> None:
    backoff = Backoff(random=lambda: 1.0)
    bounds = [round(backoff.next_delay(), 3) for _ in range(8)]
    assert bounds == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_bounds_are_those_given() -> None:
    backoff = Backoff(first_seconds=1.0, longest_seconds=3.0, random=lambda: 1.0)
    assert [backoff.next_delay() for _ in range(4)] == [1.0, 2.0, 3.0, 3.0]


def test_jitter_takes_up_to_half_of_a_bound() -> None:
    assert Backoff(random=lambda: 0.0).next_delay() == FIRST_SECONDS / 2


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 3000))
def test_delays_stay_within_their_bounds_however_many_tries(jitter: float, tries: int) -> None:
    backoff = Backoff(random=lambda: jitter)
    for _ in range(tries):
        backoff.next_delay()
    assert FIRST_SECONDS / 2 <= backoff.next_delay() <= LONGEST_SECONDS


def test_delays_start_over_after_a_success() -> None:
    backoff = Backoff(random=lambda: 1.0)
    backoff.next_delay()
    backoff.succeeded()
    assert [backoff.next_delay() for _ in range(2)] == [0.2, 0.4]


def test_delays_start_over_after_a_success_that_held() -> None:
    clock = _Clock()
    backoff = Backoff(held_seconds=5.0, random=lambda: 1.0, clock=clock)
    backoff.next_delay()
    backoff.succeeded()
    assert not backoff.has_held()
    clock.now += 5.0
    assert backoff.has_held()
    assert backoff.next_delay() == 0.2


def test_delays_go_on_growing_after_a_success_that_did_not_hold() -> None:
    clock = _Clock()
    backoff = Backoff(held_seconds=5.0, random=lambda: 1.0, clock=clock)
    delays = []
    for _ in range(4):
        backoff.succeeded()
        clock.now += 4.9
        delays.append(backoff.next_delay())
    assert delays == [0.2, 0.4, 0.8, 1.6]


def test_a_success_that_ended_does_not_hold_through_a_long_outage() -> None:
    clock = _Clock()
    backoff = Backoff(held_seconds=5.0, random=lambda: 1.0, clock=clock)
    backoff.succeeded()
    backoff.next_delay()
    clock.now += 60.0
    assert not backoff.has_held()
    assert backoff.next_delay() == 0.4


def test_reset_starts_over_at_once() -> None:
    backoff = Backoff(held_seconds=5.0, random=lambda: 1.0, clock=_Clock())
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 0.2
