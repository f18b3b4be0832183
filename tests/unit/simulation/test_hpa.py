"""The HPA's arithmetic, each case worked out by hand from its documentation and source."""

import pytest

from tests.simulation.hpa import Behavior, Hpa, Policy


def sizes(hpa: Hpa, metrics: list[int], *, begin: int = 1, every: float = 15.0) -> list[int]:
    """Sync again and again; pods are there at once."""
    found, size = [], begin
    for number, metric in enumerate(metrics):
        size = hpa.sync(number * every, metric=metric, replicas=size, pods=size)
        found.append(size)
    return found


def test_without_behavior_it_grows_to_4_then_doubles() -> None:
    assert sizes(Hpa(5, 100), [500] * 6) == [4, 8, 16, 32, 64, 100]


def test_with_a_behavior_it_grows_by_4_or_doubles_whichever_is_more() -> None:
    hpa = Hpa(5, 100, Behavior())
    # At 0 s: 1 + 4. At 15 s what was added at 0 s is out of the period: 5 x 2 > 5 + 4.
    assert sizes(hpa, [500] * 5) == [5, 10, 20, 40, 80]


def test_within_a_policys_period_growth_counts_from_its_beginning() -> None:
    hpa = Hpa(5, 100, Behavior(up=(Policy(60, pods=4),)))
    assert sizes(hpa, [500] * 6) == [5, 5, 5, 5, 9, 9]


@pytest.mark.parametrize(
    ("metric", "size"), [(45, 10), (55, 10), (44, 9), (56, 12), (0, 1)], ids=str
)
def test_a_tenth_more_or_less_is_no_reason(metric: int, size: int) -> None:
    hpa = Hpa(5, 100, Behavior(down_window_seconds=0, up=(Policy(15, percent=1000),)))
    assert hpa.sync(0.0, metric=metric, replicas=10, pods=10) == size


def test_it_shrinks_to_the_largest_of_five_minutes() -> None:
    found = sizes(Hpa(5, 10), [50, *[5] * 22], begin=10)
    assert found[:20] == [10] * 20
    assert found[20:] == [1, 1, 1]  # 300 s after the last recommendation of 10


def test_with_no_window_it_shrinks_at_once_and_never_below_one() -> None:
    assert sizes(Hpa(5, 10, Behavior(down_window_seconds=0)), [50, 20, 0], begin=10) == [10, 4, 1]


def test_shrinking_is_limited_per_period() -> None:
    hpa = Hpa(5, 10, Behavior(down_window_seconds=0, down=(Policy(30, percent=50),)))
    assert sizes(hpa, [0] * 5, begin=10) == [5, 5, 2, 2, 1]


def test_at_zero_it_is_out_of_service() -> None:
    assert Hpa(5, 10).sync(0.0, metric=500, replicas=0, pods=0) == 0


def test_more_than_the_most_is_never_wanted() -> None:
    assert sizes(Hpa(5, 6), [500] * 3) == [4, 6, 6]
    assert sizes(Hpa(5, 6, Behavior()), [500] * 3) == [5, 6, 6]
