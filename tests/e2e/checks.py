"""What must be true of a row of the table besides the statuses; for `Row.also`, and on the way.

Each function returns a step; ``role`` says which Task, ``it`` unless told otherwise.
"""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from typing import Any

from tests.e2e.api import Body
from tests.e2e.harness import Run, conditions
from tests.e2e.scenario_runner import PATIENCE_SECONDS, Play
from tests.e2e.table import Step


def ran(times: int, role: str = "it") -> Step:
    """A handler ran so often, by its workers' logs, and runs no more."""

    def check(play: Play) -> None:
        def all_ended() -> bool:
            runs = play.runs(role)
            return len(runs) >= times and all(run.ended is not None for run in runs)

        play.harness.until(all_ended, what=f"{times} runs of {role}", seconds=PATIENCE_SECONDS)
        runs = play.runs(role)
        assert len(runs) == times, runs

    return check


def was_stopped(role: str = "it") -> Step:
    """A Task's last run ended well before it would have by itself."""

    def check(play: Play) -> None:
        ran_to_end = play.latest(role)["spec"]["payload"]["seconds"]

        def ended() -> bool:
            runs = play.runs(role)
            return bool(runs) and runs[-1].ended is not None

        play.harness.until(ended, what=f"{role} stopped", seconds=PATIENCE_SECONDS)
        run = play.runs(role)[-1]
        assert run.ended is not None
        assert (run.ended - run.began).total_seconds() < ran_to_end - 1

    return check


def was_never(*phases: str, role: str = "it") -> Step:
    """A Task was never seen in a phase."""

    def check(play: Play) -> None:
        versions = play.harness.tasks.versions(play.name(role))
        assert not {one["status"]["phase"] for one in versions} & set(phases)

    return check


def message_names(*named: str, role: str = "it") -> Step:
    """A Task's message names these Tasks."""

    def check(play: Play) -> None:
        words = set(re.findall(r"[-\w]+", play.status(role)["message"]))
        assert {play.name(one) for one in named} <= words, words

    return check


def ran_in_order(*roles: str) -> Step:
    """The handlers of these Tasks began in this order."""

    def check(play: Play) -> None:
        began = {role: play.runs(role)[0].began for role in roles}
        assert sorted(roles, key=lambda role: began[role]) == list(roles), began

    return check


def waited(*seconds: float, slack: float = 2.0, role: str = "it") -> Step:
    """Between its attempts the Task waited as long, and never less.

    ``slack`` is for the way to the worker, on a machine that has much else to do; `due_after` and
    `waited_exactly` know better how long the operator meant to wait.
    """

    def check(play: Play) -> None:
        waits = _waits(play, role)
        assert len(waits) == len(seconds), waits
        for found, told in zip(waits, seconds, strict=True):
            assert told - 0.02 <= found <= told + slack, (waits, seconds)

    return check


def waited_exactly(*seconds: float, roles: tuple[str, ...]) -> Step:
    """Tasks alike waited as long, each wait to a fifth of a second for one of them at least."""

    def check(play: Play) -> None:
        found = [_waits(play, role) for role in roles]
        for told, waits in zip(seconds, zip(*found, strict=True), strict=True):
            assert told - 0.02 <= min(waits) <= told + 0.2, (found, seconds)

    return check


def due_after(seconds: float, role: str = "it") -> Step:
    """The next attempt is due so long after the last one ended."""

    def check(play: Play) -> None:
        status = play.status(role)
        found = _between(status["history"][-1]["finishTime"], status["nextAttemptTime"])
        assert abs(found - seconds) < 0.01, found

    return check


def began_after(moment: str, role: str = "it") -> Step:
    """The first attempt began after ``startAfter``, or after another Task (of that role) ended."""

    def check(play: Play) -> None:
        start = _time(play.status(role)["startTime"])
        earliest = _moment(play, moment, role)
        assert start >= earliest - 0.002, (start, earliest)

    return check


def ended_after(seconds: float, since: str, role: str = "it", *, slack: float = 2.0) -> Step:
    """A Task ended so long after its creation, startAfter, resume, or another Task's end."""

    def check(play: Play) -> None:
        found = _time(play.status(role)["completionTime"]) - _moment(play, since, role)
        assert seconds - 0.02 <= found <= seconds + slack, found

    return check


def due_at_start_after(role: str = "it") -> Step:
    """The next attempt is due at startAfter."""

    def check(play: Play) -> None:
        task = play.latest(role)
        assert _time(task["status"]["nextAttemptTime"]) == _time(task["spec"]["startAfter"])

    return check


def never_two_at_once(*roles: str, but: int = 1) -> Step:
    """Of these Tasks never more than so many ran at once, by the handlers' own words."""
    return lambda play: _assert_at_once(play, roles, lambda most: most <= but)


def at_once(number: int, *roles: str) -> Step:
    """Of these Tasks so many did run at once."""
    return lambda play: _assert_at_once(play, roles, lambda most: most >= number)


def fences_grow(*roles: str) -> Step:
    """Who began later was given a higher fence."""

    def check(play: Play) -> None:
        results = sorted((play.status(role)["result"] for role in roles), key=_began)
        fences = [result["fence"] for result in results]
        assert fences == sorted(set(fences)), fences

    return check


def _assert_at_once(play: Play, roles: tuple[str, ...], holds: Any) -> None:
    """Count runs at once: from the workers' logs, and once more from the results."""

    def all_runs() -> list[Run]:
        return [run for role in roles for run in play.runs(role)]

    play.harness.until(
        lambda: all(run.ended is not None for run in all_runs()),
        what=f"{roles} at their end",
        seconds=PATIENCE_SECONDS,
    )
    runs = all_runs()
    spans = [(run.began.timestamp(), run.ended.timestamp()) for run in runs if run.ended]
    most = _most(spans)
    assert holds(most), (most, runs)
    results = [play.status(role).get("result") or {} for role in roles]
    told = [(one["began"], one["ended"]) for one in results if "began" in one]
    if len(told) == len(runs):
        assert holds(_most(told)), results


def _most(spans: list[tuple[float, float]]) -> int:
    """Return how many spans overlap at most; one that ends as another begins does not."""
    changes = sorted([(end, -1) for _, end in spans] + [(begin, 1) for begin, _ in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _moment(play: Play, moment: str, role: str) -> float:
    task = play.latest(role)
    if moment == "creation":
        return _time(task["metadata"]["creationTimestamp"])
    if moment == "startAfter":
        return _time(task["spec"]["startAfter"])
    if moment == "resume":
        return _time(conditions(task["status"])["Suspended"]["lastTransitionTime"])
    return _time(play.status(moment)["completionTime"])


def _waits(play: Play, role: str) -> list[float]:
    pairs = itertools.pairwise(play.status(role)["history"])
    return [_between(one["finishTime"], next_["startTime"]) for one, next_ in pairs]


def _began(result: Body) -> float:
    began: float = result["began"]
    return began


def _between(earlier: str, later: str) -> float:
    return _time(later) - _time(earlier)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
