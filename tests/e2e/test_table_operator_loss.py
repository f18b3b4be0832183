"""The rows of the table for which the operator is killed, once for all of them."""

import pytest

from tests.e2e.lifecycle_cases import operator_loss
from tests.e2e.scenario_runner import Stage
from tests.e2e.table import Row

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("row", operator_loss.ROWS, ids=lambda row: row.title)
def test_row(row: Row, stage: Stage) -> None:
    stage.result(row)
