"""The lifecycle cases for which the operator is killed, once for all of them."""

import pytest

from tests.e2e.case_runner import CaseRunner
from tests.e2e.lifecycle_case import LifecycleCase
from tests.e2e.lifecycle_cases import operator_loss

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("case", operator_loss.CASES, ids=lambda case: case.title)
def test_lifecycle_case(case: LifecycleCase, case_runner: CaseRunner) -> None:
    case_runner.wait_finished(case)
