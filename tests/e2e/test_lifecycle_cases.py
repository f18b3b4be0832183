"""All lifecycle cases at once: what follows from a manifest and an event.

Read a case as: on this TaskQueue, given these Tasks, when this happens, then exactly this follows,
and also that. `tests.e2e.lifecycle_case` defines the words.
"""

import pytest

from tests.e2e.case_runner import CaseRunner, object_prefix
from tests.e2e.lifecycle_case import LifecycleCase
from tests.e2e.lifecycle_cases import cancel, depend, keys, retry, suspend, time

pytestmark = pytest.mark.cluster

#: The longest first.
CASES: tuple[LifecycleCase, ...] = (
    *time.CASES,
    *retry.CASES,
    *suspend.CASES,
    *keys.CASES,
    *cancel.CASES,
    *depend.CASES,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_lifecycle_case(case: LifecycleCase, case_runner: CaseRunner) -> None:
    case_runner.wait_finished(case)


def test_no_two_lifecycle_cases_share_a_prefix() -> None:
    prefixes = [object_prefix(case) for case in CASES]
    assert sorted(prefixes) == sorted(set(prefixes))
