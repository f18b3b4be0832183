"""How many items of a queue are on their way: a Task waits little, and no worker waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.batches.window import LARGEST_WINDOW, MeanRun, items_window


@given(st.integers(1, 400), st.floats(0.2, 1e5), st.integers(1, 10_000))
def test_a_task_behind_the_window_starts_within_two_mean_runs(
    slots: int, mean: float, most: int
) -> None:
    window = items_window(slots=slots, mean_run_seconds=mean, max_published=most)
    assert 1 <= window <= min(2 * slots, most)


def test_short_runs_have_as_many_ahead_as_are_run_in_a_round_trip() -> None:
    window = items_window(slots=4, mean_run_seconds=0.01, max_published=10_000)
    assert window == 4 + 4 * 20
    assert items_window(slots=8, mean_run_seconds=0.0, max_published=10_000) == LARGEST_WINDOW


def test_without_a_known_worker_a_few_are_published_for_the_first_one() -> None:
    assert items_window(slots=0, mean_run_seconds=None, max_published=1000) == 8
    assert items_window(slots=3, mean_run_seconds=None, max_published=1000) == 6


def test_the_mean_follows_the_latest_runs() -> None:
    runs = MeanRun()
    assert runs.seconds is None
    for _ in range(200):
        runs.add(1.0)
    for _ in range(200):
        runs.add(3.0)
    assert runs.seconds is not None
    assert 2.9 < runs.seconds <= 3.0
