from collections.abc import Iterator

import pytest

from tests.e2e.fixtures import api, case_runner, harness, pytest_runtest_makereport
from tests.e2e.gates import Gates
from tests.e2e.harness import Harness
from tests.e2e.pod_removals import PodRemovals

__all__ = ["api", "case_runner", "harness", "pytest_runtest_makereport"]

#: Take the operator, then the broker, of all others away for a while.
_LAST = ("test_operator_loss.py", "test_lifecycle_cases_operator_loss.py", "test_broker_restart.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LAST.index(item.path.name) if item.path.name in _LAST else -1)


@pytest.fixture(scope="module")
def gates(harness: Harness) -> Gates:
    """Tasks that run until a test lets them end."""
    return Gates(harness)


@pytest.fixture(scope="module")
def pod_removals(harness: Harness) -> Iterator[PodRemovals]:
    """When the pods of the test namespace were deleted."""
    seen = PodRemovals(harness)
    yield seen
    seen.close()
