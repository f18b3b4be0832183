"""What the benchmark of fair shares counts."""

from __future__ import annotations

import pytest

from tests.bench.fairness import heavy_share


@pytest.mark.parametrize(
    ("order", "share"),
    [
        (["heavy", "heavy", "heavy", "light"] * 100 + ["light"] * 200, 0.75),
        (["heavy", "light"] * 20, 0.5),
        (["light"] * 10 + ["heavy"] * 10, 0.0),
        # One that ends last says nothing about who waited.
        (["heavy"] * 18 + ["light"] * 20 + ["heavy"], 1.0),
    ],
)
def test_share_is_counted_while_both_teams_have_tasks_left(order: list[str], share: float) -> None:
    assert heavy_share(order) == pytest.approx(share, abs=0.02)
