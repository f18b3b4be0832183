from collections.abc import Iterator

import pytest

from tests.chaos.load import Load
from tests.e2e.fixtures import api, harness, pytest_runtest_makereport
from tests.e2e.harness import Harness

__all__ = ["api", "harness", "pytest_runtest_makereport"]

#: Lines for the summary of the test run.
_SUMMARY = pytest.StashKey[list[str]]()


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
    collected = request.config.stash.setdefault(_SUMMARY, [])
    collected += [f"{request.node.name}: {line}" for line in lines]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    collected = config.stash.get(_SUMMARY, [])
    if collected:
        terminalreporter.section("what losses cost")
        for line in collected:
            terminalreporter.line(line)
