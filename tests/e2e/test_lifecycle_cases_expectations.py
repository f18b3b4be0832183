"""Lifecycle cases expect exactly what they say: any other difference in a status fails them."""

from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import merged
from tests.e2e.lifecycle_case import (
    ExpectedStatus,
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
_NAMES = {"case": "r", "dep": "r-dep"}


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

MATCHING = [
    (succeeded(result={"a": 1}), SUCCEEDED),
    (retrying("Boom", "attempt 1 of *: Boom"), RETRYING),
    (running(key="{case}-k", epoch=2), RUNNING),
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


@pytest.mark.parametrize(("expected", "actual"), MATCHING)
def test_expected_status_matches_itself(expected: ExpectedStatus, actual: Body) -> None:
    assert expected.is_candidate(actual, _NAMES)
    expected.assert_matches(actual, _NAMES)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("expected", "actual"), MATCHING)
def test_expected_status_fails_on_any_difference(
    expected: ExpectedStatus, actual: Body, change: Body
) -> None:
    with pytest.raises(AssertionError):
        expected.assert_matches(merged(actual, {"status": change}), _NAMES)


@pytest.mark.parametrize("time", ["startTime", "completionTime", "nextAttemptTime"])
@pytest.mark.parametrize(("expected", "actual"), MATCHING)
def test_expected_status_fails_on_a_time_too_many_or_too_few(
    expected: ExpectedStatus, actual: Body, time: str
) -> None:
    other = None if time in actual["status"] else _TIME
    with pytest.raises(AssertionError):
        expected.assert_matches(merged(actual, {"status": {time: other}}), _NAMES)


@pytest.mark.parametrize(("expected", "actual"), MATCHING)
def test_expected_status_fails_on_an_end_of_an_older_generation(
    expected: ExpectedStatus, actual: Body
) -> None:
    late = merged(actual, {"metadata": {"generation": 4}})
    if "completionTime" in actual["status"]:
        with pytest.raises(AssertionError):
            expected.assert_matches(late, _NAMES)
    else:
        expected.assert_matches(late, _NAMES)  # what is on its way may lag behind


def test_any_result_does_not_match_none() -> None:
    with pytest.raises(AssertionError):
        succeeded().assert_matches(merged(SUCCEEDED, {"status": {"result": None}}), _NAMES)
