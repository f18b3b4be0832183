from collections.abc import Iterator

import pytest

from tests.e2e.fixtures import api, case_runner, harness, pytest_runtest_makereport
from tests.e2e.gates import Gates
from tests.e2e.harness import Harness
from tests.e2e.pod_removals import PodRemovals

__all__ = ["api", "case_runner", "harness", "pytest_runtest_makereport"]


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
