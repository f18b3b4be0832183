from collections.abc import Iterator

import pytest

from tests.chaos.load import Load
from tests.conftest import SUMMARY_LINE
from tests.e2e.fixtures import api, harness, pytest_runtest_makereport
from tests.e2e.harness import Harness

__all__ = ["api", "harness", "pytest_runtest_makereport"]


@pytest.fixture
def load(harness: Harness) -> Load:
    """A load of Tasks, not started yet, and its TaskQueue."""
    load = Load(harness)
    load.prepare()
    return load


@pytest.fixture
def summary_lines(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that the summary of the test run shows, even if the test passes."""
    lines: list[str] = []
    yield lines
    request.node.user_properties.extend((SUMMARY_LINE, line) for line in lines)
