"""Percentiles, spreads and ratios."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.statistics import Spread, percentile, ratio, significant

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (90, 90), (99, 99), (99.5, 100), (100, 100)]
)
def test_percentiles_of_a_hundred(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


@given(VALUES, st.floats(0, 100))
def test_a_percentile_is_a_measured_value_that_enough_others_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-9


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_what_has_no_percentile(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile(values, percent)


def test_a_spread_tells_how_many_it_is_of() -> None:
    assert Spread.of([3.0, 1.0, 2.0]).as_dict() == {"min": 1, "median": 2, "max": 3, "n": 3}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (123.456, 123.5),
        (0.00123456, 0.001235),
        (-12345.6, -12350),
        (0.0, 0.0),
        (math.inf, math.inf),
    ],
)
def test_four_significant_digits(value: float, expected: float) -> None:
    assert significant(value) == expected


def test_a_ratio_to_nothing_is_infinite() -> None:
    assert ratio(10, 4) == 2.5
    assert ratio(1, 0) == math.inf
