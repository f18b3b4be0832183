"""What the benchmark of fair shares counts."""

from __future__ import annotations

import pytest

from tests.bench.fairness import heavy_share


@pytest.mark.parametrize(
    ("order", "share"),
    [
        (["heavy", "heavy", "heavy", "light"] * 2 + ["light"] * 4, 6 / 7),
        (["heavy", "light"] * 4, 4 / 7),
        (["light"] * 3 + ["heavy"] * 3, 0.0),
    ],
)
def test_share_is_counted_while_both_teams_have_tasks_left(order: list[str], share: float) -> None:
    assert heavy_share(order) == pytest.approx(share)
