"""What the summary of a test run says besides pytest's own, whichever process ran the tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

#: The name of a test's property that is printed at the end of the run.
SUMMARY_LINE = "summary"

_LEFT_OUT = "long_tests_left_out"

_lines: list[str] = []
_left_out = 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test has for the summary; it comes with the report of whichever worker ran it."""
    if report.when == "teardown":
        _lines.extend(
            f"{report.nodeid.rpartition('::')[2]}: {line}"
            for name, line in report.user_properties
            if name == SUMMARY_LINE
        )


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the long tests that do not run."""
    global _left_out
    long = [item for item in items if item.get_closest_marker("long")]
    _left_out += len(long)
    for item in long[:1]:
        output = getattr(item.config, "workeroutput", None)
        if output is not None:
            output[_LEFT_OUT] = _left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take over the count of a worker of pytest-xdist: all have collected the same tests."""
    global _left_out
    _left_out = max(_left_out, getattr(node, "workeroutput", {}).get(_LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what losses cost, and how many tests are left to ``make test-long``."""
    if _lines:
        terminalreporter.section("what losses cost")
        for line in _lines:
            terminalreporter.line(line)
    if _left_out:
        terminalreporter.line(f"long tests left out: {_left_out} (make test-long runs them)")
