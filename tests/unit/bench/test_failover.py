"""The time of a takeover, from what began when."""

import pytest

from tests.bench.deadline import BenchError
from tests.bench.failover import seconds_to_next_dispatch


@pytest.mark.parametrize(
    ("begun", "seconds"),
    [
        ([9.8, 9.9, 17.0, 17.1, 17.2], 7.0),
        # What was published before the loss begins after it.
        ([9.9, 10.1, 10.3, 18.0, 18.1], 8.0),
        # A pause before the loss does not count.
        ([1.0, 9.9, 10.5, 10.6], 0.5),
        ([10.2], 0.2),
    ],
)
def test_the_longest_pause_after_the_loss_ends_with_the_next_dispatch(
    begun: list[float], seconds: float
) -> None:
    assert seconds_to_next_dispatch(10.0, begun) == pytest.approx(seconds)


def test_a_loss_after_which_nothing_begins_has_no_figure() -> None:
    with pytest.raises(BenchError, match="no Task has begun"):
        seconds_to_next_dispatch(10.0, [1.0, 9.9])
