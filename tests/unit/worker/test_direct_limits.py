"""The limits of direct messages follow their files while the worker runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from taskqueue.worker.direct_limits import DirectLimits
from tests.unit.worker.fakes import settings
from tests.unit.worker.harness import RuntimeHarness, direct

TIMEOUT, DELIVERIES = "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS", "TASKQUEUE_MAX_DELIVERIES"


class Case:
    """The limits of a worker with 60 s and 5 deliveries in its environment."""

    def __init__(self, directory: Path | str) -> None:
        self.now = 0.0
        known = settings(
            direct_timeout_seconds=60.0, direct_max_deliveries=5, limits_directory=str(directory)
        )
        self.limits = DirectLimits(known, clock=lambda: self.now)

    def read(self) -> tuple[float, int]:
        self.now += 1.0
        return self.limits.read()


def test_without_files_the_environment_counts(tmp_path: Path) -> None:
    for directory in ("", tmp_path, tmp_path / "missing"):
        assert Case(directory).read() == (60.0, 5)


def test_a_file_takes_precedence_and_is_read_again(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (tmp_path / TIMEOUT).write_text("7\n")
    assert case.read() == (7.0, 5)
    (tmp_path / TIMEOUT).write_text("8")
    (tmp_path / DELIVERIES).write_text("2")
    assert case.limits.read() == (7.0, 5), "not within a second"
    assert case.read() == (8.0, 2)


@pytest.mark.parametrize("text", ["", "0", "many", "-1", "\x00", "9" * 400])
def test_a_wrong_file_changes_nothing_and_is_logged_once(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(tmp_path)
    (tmp_path / DELIVERIES).write_text("2")
    assert case.read() == (60.0, 2)
    (tmp_path / DELIVERIES).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert [case.read() for _ in range(3)] == [(60.0, 2)] * 3
    assert [record.getMessage() for record in caplog.records] == ["limits.read_failed"]
    (tmp_path / DELIVERIES).unlink()
    assert case.read() == (60.0, 2), "the last known stays"


@pytest.mark.looptime
async def test_a_direct_message_has_the_limits_of_the_moment_it_comes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"slots": 2, "limits_directory": str(tmp_path)}
    harness = RuntimeHarness(**changes)
    harness.runtime._delivery_handler._direct_limits = case = Case(tmp_path).limits
    (tmp_path / TIMEOUT).write_text("7")
    (tmp_path / DELIVERIES).write_text("4")
    case._clock = lambda: 10.0
    harness.deliver(direct())
    attempt = harness.executor.started[0].attempt
    assert (attempt.timeout_seconds, attempt.max_attempts) == (7.0, 4)
