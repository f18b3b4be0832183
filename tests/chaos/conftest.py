from collections.abc import Iterator

import pytest

from tests.chaos.load import Load
from tests.e2e.fixtures import api, harness, pytest_runtest_makereport
from tests.e2e.harness import Harness

__all__ = ["api", "harness", "pytest_runtest_makereport"]

#: Lines for the summary.
_TOLD = pytest.StashKey[list[str]]()


@pytest.fixture
def load(harness: Harness) -> Load:
    """Tasks to come, and the TaskQueue they need."""
    load = Load(harness)
    load.prepare()
    return load


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines to be read in the summary, also of tests that pass."""
    lines: list[str] = []
    yield lines
    told = request.config.stash.setdefault(_TOLD, [])
    told += [f"{request.node.name}: {line}" for line in lines]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    told = config.stash.get(_TOLD, [])
    if told:
        terminalreporter.section("what losses cost")
        for line in told:
            terminalreporter.line(line)
