"""What a row says is exact: a status that differs from it anywhere is not taken for it."""

from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import merged
from tests.e2e.table import (
    Shows,
    blocked,
    cancelled,
    retrying,
    running,
    scheduled,
    succeeded,
    suspended,
)

_TIME = "2026-01-02T03:04:05.678Z"
_FAILED = {"attempt": 1, "outcome": "Failed", "reason": "Boom"}
_NAMES = {"row": "r", "dep": "r-dep"}


def task(*true: str, **status: Any) -> Body:
    base: Body = {
        "observedGeneration": 3,
        "reason": "",
        "message": "",
        "attempts": 0,
        "epoch": 0,
        "history": [],
        "conditions": [{"type": kind, "status": "True"} for kind in true],
    }
    return {"metadata": {"generation": 3}, "status": {**base, **status}}


FAILED_ONCE: Body = {"attempts": 1, "startTime": _TIME, "history": [_FAILED]}
SUCCEEDED = task(
    "Finished",
    "Complete",
    phase="Succeeded",
    attempts=1,
    startTime=_TIME,
    completionTime=_TIME,
    history=[{"attempt": 1, "outcome": "Succeeded", "reason": ""}],
    result={"a": 1},
)
RETRYING = task(
    "Reconciling",
    phase="Retrying",
    reason="Boom",
    message="attempt 1 of 3: Boom",
    nextAttemptTime=_TIME,
    **FAILED_ONCE,
)
RUNNING = task(
    "Reconciling", phase="Running", attempts=1, startTime=_TIME, concurrencyKey="r-k", epoch=2
)
BLOCKED = task(
    "Reconciling", phase="Blocked", reason="DependencyNotFound", message="there is no Task r-dep"
)
CANCELLED = task(
    "Finished",
    "Failed",
    "Stalled",
    phase="Cancelled",
    reason="Cancelled",
    message="spec.cancel is true",
    completionTime=_TIME,
)
SUSPENDED = task(
    "Suspended",
    "Reconciling",
    phase="Suspended",
    reason="Suspended",
    message="spec.suspend is true",
)
SCHEDULED = task(
    "Reconciling",
    phase="Scheduled",
    reason="StartAfter",
    message="spec.startAfter has not come",
    nextAttemptTime=_TIME,
)

TOLD = [
    (succeeded(result={"a": 1}), SUCCEEDED),
    (retrying("Boom", "attempt 1 of *: Boom"), RETRYING),
    (running(key="{row}-k", epoch=2), RUNNING),
    (blocked("DependencyNotFound", "there is no Task {dep}"), BLOCKED),
    (cancelled(), CANCELLED),
    (suspended(), SUSPENDED),
    (scheduled(), SCHEDULED),
]

CHANGES: list[Body] = [
    {"phase": "Failed"},
    {"reason": "Other"},
    {"message": "something else"},
    {"attempts": 7},
    {"epoch": 7},
    {"history": [_FAILED, _FAILED]},
    {"history": [{"attempt": 1, "outcome": "Cancelled", "reason": "Other"}]},
    {"result": {"b": 2}},
    {"concurrencyKey": "another"},
    {"conditions": [{"type": "Reconciling", "status": "False"}]},
    {"conditions": [{"type": "Suspended", "status": "False"}]},
]


@pytest.mark.parametrize(("shows", "shown"), TOLD)
def test_what_is_told_is_taken(shows: Shows, shown: Body) -> None:
    assert shows.is_meant(shown, _NAMES)
    shows.assert_shown_by(shown, _NAMES)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("shows", "shown"), TOLD)
def test_any_difference_is_found(shows: Shows, shown: Body, change: Body) -> None:
    with pytest.raises(AssertionError):
        shows.assert_shown_by(merged(shown, {"status": change}), _NAMES)


@pytest.mark.parametrize("time", ["startTime", "completionTime", "nextAttemptTime"])
@pytest.mark.parametrize(("shows", "shown"), TOLD)
def test_a_time_too_many_or_too_few_is_found(shows: Shows, shown: Body, time: str) -> None:
    other = None if time in shown["status"] else _TIME
    with pytest.raises(AssertionError):
        shows.assert_shown_by(merged(shown, {"status": {time: other}}), _NAMES)


@pytest.mark.parametrize(("shows", "shown"), TOLD)
def test_an_end_of_an_older_generation_is_found(shows: Shows, shown: Body) -> None:
    late = merged(shown, {"metadata": {"generation": 4}})
    if "completionTime" in shown["status"]:
        with pytest.raises(AssertionError):
            shows.assert_shown_by(late, _NAMES)
    else:
        shows.assert_shown_by(late, _NAMES)  # what is on its way may lag behind


def test_any_result_is_not_none() -> None:
    with pytest.raises(AssertionError):
        succeeded().assert_shown_by(merged(SUCCEEDED, {"status": {"result": None}}), _NAMES)
