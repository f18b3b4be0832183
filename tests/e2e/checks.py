"""What must hold in a lifecycle case besides the statuses; for `LifecycleCase.also` and `when`.

Each function returns a step. ``role`` selects the Task, ``it`` by default.
"""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from typing import Any

from tests.e2e.case_runner import RunningCase
from tests.e2e.harness import PATIENCE_SECONDS, Run, conditions
from tests.e2e.lifecycle_case import Step


def ran(times: int, role: str = "it") -> Step:
    """The handler ran this often, by its workers' logs, and has ended."""

    def check(case: RunningCase) -> None:
        def all_ended() -> bool:
            runs = case.runs(role)
            return len(runs) >= times and all(run.ended is not None for run in runs)

        case.harness.until(all_ended, what=f"{times} runs of {role}", seconds=PATIENCE_SECONDS)
        runs = case.runs(role)
        assert len(runs) == times, runs

    return check


def was_stopped(role: str = "it") -> Step:
    """A Task's last run ended well before it would have by itself."""

    def check(case: RunningCase) -> None:
        ran_to_end = case.latest(role)["spec"]["payload"]["seconds"]

        def ended() -> bool:
            runs = case.runs(role)
            return bool(runs) and runs[-1].ended is not None

        case.harness.until(ended, what=f"{role} stopped", seconds=PATIENCE_SECONDS)
        run = case.runs(role)[-1]
        assert run.ended is not None
        assert (run.ended - run.began).total_seconds() < ran_to_end - 1

    return check


def was_never(*phases: str, role: str = "it") -> Step:
    """A Task was never seen in a phase."""

    def check(case: RunningCase) -> None:
        versions = case.harness.tasks.versions(case.name(role))
        assert not {one["status"]["phase"] for one in versions} & set(phases)

    return check


def message_names(*named: str, role: str = "it") -> Step:
    """A Task's message names these Tasks."""

    def check(case: RunningCase) -> None:
        words = set(re.findall(r"[-\w]+", case.status(role).get("message", "")))
        assert {case.name(one) for one in named} <= words, words

    return check


def ran_in_order(*roles: str) -> Step:
    """The handlers of these Tasks began in this order."""

    def check(case: RunningCase) -> None:
        began = {role: case.runs(role)[0].began for role in roles}
        assert sorted(roles, key=lambda role: began[role]) == list(roles), began

    return check


def waited(*seconds: float, slack: float = 2.0, role: str = "it") -> Step:
    """Between its attempts the Task waited this long, and never less.

    ``slack`` allows for the way to the worker on a busy machine. `due_after` and `waited_exactly`
    measure more exactly how long the operator meant to wait.
    """

    def check(case: RunningCase) -> None:
        waits = _waits(case, role)
        assert len(waits) == len(seconds), waits
        for found, expected in zip(waits, seconds, strict=True):
            assert expected - 0.02 <= found <= expected + slack, (waits, seconds)

    return check


def waited_exactly(*seconds: float, roles: tuple[str, ...]) -> Step:
    """Equal Tasks waited this long; at least one of them within 0.4 s, for each wait."""

    def check(case: RunningCase) -> None:
        found = [_waits(case, role) for role in roles]
        for expected, waits in zip(seconds, zip(*found, strict=True), strict=True):
            assert expected - 0.02 <= min(waits) <= expected + 0.4, (found, seconds)

    return check


def due_after(seconds: float, role: str = "it") -> Step:
    """The next attempt is due this many seconds after the last one ended."""

    def check(case: RunningCase) -> None:
        status = case.status(role)
        found = _between(status["history"][-1]["finishTime"], status["nextAttemptTime"])
        assert abs(found - seconds) < 0.01, found

    return check


def began_after(moment: str, role: str = "it") -> Step:
    """The first attempt began after ``startAfter``, or after another Task (of that role) ended."""

    def check(case: RunningCase) -> None:
        start = _time(case.status(role)["startTime"])
        earliest = _moment(case, moment, role)
        assert start >= earliest - 0.002, (start, earliest)

    return check


def ended_after(seconds: float, since: str, role: str = "it", *, slack: float = 2.0) -> Step:
    """A Task ended this long after its creation, startAfter, resume, or another Task's end."""

    def check(case: RunningCase) -> None:
        found = _time(case.status(role)["completionTime"]) - _moment(case, since, role)
        assert seconds - 0.02 <= found <= seconds + slack, found

    return check


def due_at_start_after(role: str = "it") -> Step:
    """The next attempt is due at startAfter."""

    def check(case: RunningCase) -> None:
        task = case.latest(role)
        assert _time(task["status"]["nextAttemptTime"]) == _time(task["spec"]["startAfter"])

    return check


def never_two_at_once(*roles: str, but: int = 1) -> Step:
    """No more than ``but`` of these Tasks ever ran at once, by what the handlers recorded."""
    return lambda case: _assert_at_once(case, roles, lambda most: most <= but)


def at_once(number: int, *roles: str) -> Step:
    """At least ``number`` of these Tasks ran at once at some time."""
    return lambda case: _assert_at_once(case, roles, lambda most: most >= number)


def fences_grow(*roles: str) -> Step:
    """A later run got a higher fence."""

    def check(case: RunningCase) -> None:
        runs = sorted((run for role in roles for run in case.runs(role)), key=lambda run: run.began)
        fences = [int(run.fence) for run in runs]
        assert len(fences) == len(roles)
        assert fences == sorted(set(fences)), fences

    return check


def _assert_at_once(case: RunningCase, roles: tuple[str, ...], holds: Any) -> None:
    """Count overlapping runs twice: from the workers' logs and from the results."""

    def all_runs() -> list[Run]:
        return [run for role in roles for run in case.runs(role)]

    case.harness.until(
        lambda: all(run.ended is not None for run in all_runs()),
        what=f"{roles} at their end",
        seconds=PATIENCE_SECONDS,
    )
    runs = all_runs()
    spans = [(run.began.timestamp(), run.ended.timestamp()) for run in runs if run.ended]
    most = _most(spans)
    assert holds(most), (most, runs)
    results = [case.status(role).get("result") or {} for role in roles]
    recorded = [(one["began"], one["ended"]) for one in results if "began" in one]
    if len(recorded) == len(runs):
        assert holds(_most(recorded)), results


def _most(spans: list[tuple[float, float]]) -> int:
    """Return how many spans overlap at most; one that ends as another begins does not."""
    changes = sorted([(end, -1) for _, end in spans] + [(begin, 1) for begin, _ in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _moment(case: RunningCase, moment: str, role: str) -> float:
    task = case.latest(role)
    if moment == "creation":
        return _time(task["metadata"]["creationTimestamp"])
    if moment == "startAfter":
        return _time(task["spec"]["startAfter"])
    if moment == "resume":
        return _time(conditions(task["status"])["Suspended"]["lastTransitionTime"])
    return _time(case.status(moment)["completionTime"])


def _waits(case: RunningCase, role: str) -> list[float]:
    pairs = itertools.pairwise(case.status(role).get("history", []))
    return [_between(one["finishTime"], next_["startTime"]) for one, next_ in pairs]


def _between(earlier: str, later: str) -> float:
    return _time(later) - _time(earlier)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
