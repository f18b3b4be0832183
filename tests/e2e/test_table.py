"""The table, all rows at once: what follows from a manifest and an event.

A row is read as: on this TaskQueue, given these Tasks, when this happens, then exactly this
follows, and also that. `tests.e2e.table` tells what the words mean.
"""

import pytest

from tests.e2e.lifecycle_cases import cancel, depend, keys, retry, suspend, time
from tests.e2e.scenario_runner import Stage, place_of
from tests.e2e.table import Row

pytestmark = pytest.mark.cluster

#: Those that take longest first.
TABLE: tuple[Row, ...] = (
    *time.ROWS,
    *retry.ROWS,
    *suspend.ROWS,
    *keys.ROWS,
    *cancel.ROWS,
    *depend.ROWS,
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.title)
def test_row(row: Row, stage: Stage) -> None:
    stage.result(row)


def test_no_two_rows_share_a_name() -> None:
    places = [place_of(row) for row in TABLE]
    assert sorted(places) == sorted(set(places))
