"""The interval of a median of few paired rounds."""

from __future__ import annotations

import pytest

from tests.bench.codec import interval


@pytest.mark.parametrize(
    ("count", "ranks"), [(2, (1, 2)), (5, (1, 5)), (6, (1, 6)), (15, (4, 12)), (20, (6, 15))]
)
def test_an_interval_is_of_the_ranks_that_a_table_of_the_sign_test_has(
    count: int, ranks: tuple[int, int]
) -> None:
    values = [float(number) for number in range(count, 0, -1)]
    assert interval(values) == ranks
