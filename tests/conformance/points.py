"""The points of the contract that a worker must fulfil, and the ledger of checks for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum


class Point(StrEnum):
    """The nine duties of a worker.

    H: heartbeats, M: no attempts of Tasks, C: checkpoints, L: limits and reserved words.
    """

    PREFETCH = "1"
    DELIVERIES = "2"
    COMMANDS = "3"
    RUNNING = "4"
    OUTCOMES = "5"
    STOPPING = "6"
    CUT_OFF = "7"
    RECONNECTING = "8"
    CONNECTIONS = "9"
    HEARTBEATS = "H"
    MESSAGES = "M"
    LIMITS = "L"
    CHECKPOINTS = "C"


TITLES = {
    Point.PREFETCH: "acknowledges by hand, and holds no more than it can run",
    Point.DELIVERIES: "counts deliveries, gives back what others had, and answers what it finished",
    Point.COMMANDS: "obeys commands: cancel, release, drain",
    Point.RUNNING: "runs attempts apart from its connections, and ends them on time",
    Point.OUTCOMES: "has the outcome confirmed before it acknowledges",
    Point.STOPPING: "shuts down gracefully at SIGTERM",
    Point.CUT_OFF: "ends keyed work when it is cut off, and nothing else",
    Point.RECONNECTING: "recovers from whatever ended its consumer, or closed its channels",
    Point.CONNECTIONS: "consumes and publishes on two connections",
    Point.HEARTBEATS: "reports how much it runs, and when that changes",
    Point.CHECKPOINTS: "reports checkpoints, and gives back what needs its last one",
    Point.MESSAGES: "accepts direct messages, and dead-letters malformed ones",
    Point.LIMITS: "keeps to the limits, and its own words apart from applications'",
}


class Violation(Exception):
    """The worker breaks the contract; the text says how."""


def expect(condition: object, otherwise: str) -> None:
    """Raise a violation unless the condition holds."""
    if not condition:
        raise Violation(otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check; ``problem`` is empty if it holds."""

    point: Point
    text: str
    problem: str
    seconds: float
    scenario: str


class Ledger:
    """All checks of a run, in the order they ended.

    Args:
        patience: how often its time each check has; more than once on a busy machine.
        broken: a point that is expected not to hold: its checks have their time once.
    """

    def __init__(self, *, patience: float = 1.0, broken: Point | None = None) -> None:
        self.checks: list[Check] = []
        self._patience = patience
        self._broken = broken

    @asynccontextmanager
    async def check(
        self, scenario: str, point: Point, text: str, *, seconds: float
    ) -> AsyncIterator[None]:
        """Record whether the body passes within a time; swallow what it raises."""
        began = time.monotonic()
        problem = ""
        if point is not self._broken:
            seconds *= self._patience
        try:
            async with asyncio.timeout(seconds):
                yield
        except Violation as violation:
            problem = str(violation)
        except TimeoutError:
            problem = f"not within {seconds:g} s"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        self.record(scenario, point, text, problem, time.monotonic() - began)

    def record(
        self, scenario: str, point: Point, text: str, problem: str, seconds: float = 0
    ) -> None:
        """Record a check that has been made."""
        self.checks.append(
            Check(point=point, text=text, problem=problem, seconds=seconds, scenario=scenario)
        )

    def checks_of(self, point: Point) -> list[Check]:
        """Return the checks of a point."""
        return [check for check in self.checks if check.point is point]

    def failed_in(self, scenario: str) -> bool:
        """Return whether a check of a scenario has failed."""
        return any(check.problem for check in self.checks if check.scenario == scenario)

    def holds(self, point: Point) -> bool:
        """Return whether all checks of a point hold; a point without checks does not."""
        checks = self.checks_of(point)
        return bool(checks) and not any(check.problem for check in checks)

    @property
    def failed(self) -> list[Point]:
        """The points that do not hold."""
        return [point for point in Point if not self.holds(point)]
