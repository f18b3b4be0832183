"""The points a worker is judged by, and the ledger of single checks below each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum


class Point(StrEnum):
    """What a worker owes in nine points; H for heartbeats, M for messages that are no attempt."""

    PREFETCH = "1"
    DELIVERIES = "2"
    ORDERS = "3"
    RUNNING = "4"
    OUTCOMES = "5"
    STOPPING = "6"
    CUT_OFF = "7"
    RECONNECTING = "8"
    CONNECTIONS = "9"
    HEARTBEATS = "H"
    MESSAGES = "M"


TITLES = {
    Point.PREFETCH: "acknowledges by hand, and holds no more than it can run",
    Point.DELIVERIES: "counts deliveries, and answers what it has finished",
    Point.ORDERS: "obeys orders: cancel, release, drain",
    Point.RUNNING: "runs attempts apart from its connections, and ends them in time",
    Point.OUTCOMES: "has the outcome confirmed before it acknowledges",
    Point.STOPPING: "stops in order at SIGTERM",
    Point.CUT_OFF: "ends keyed work when it is cut off, and nothing else",
    Point.RECONNECTING: "comes back after whatever ended its consumer",
    Point.CONNECTIONS: "consumes and publishes on two connections",
    Point.HEARTBEATS: "tells how much it runs, and when that changes",
    Point.MESSAGES: "takes direct messages, and buries malformed ones",
}


class Violation(Exception):
    """The worker does not do what the contract says; the text says what it does."""


def expect(condition: object, otherwise: str) -> None:
    """Raise a violation unless the condition holds."""
    if not condition:
        raise Violation(otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What came of one check; ``problem`` is empty if it holds."""

    point: Point
    text: str
    problem: str
    seconds: float
    scene: str


class Ledger:
    """All checks of a run, as they come."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    @asynccontextmanager
    async def check(
        self, scene: str, point: Point, text: str, *, seconds: float
    ) -> AsyncIterator[None]:
        """Note whether what is done inside holds, within a time; nothing is raised."""
        began = time.monotonic()
        problem = ""
        try:
            async with asyncio.timeout(seconds):
                yield
        except Violation as violation:
            problem = str(violation)
        except TimeoutError:
            problem = f"not within {seconds:g} s"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        self.note(scene, point, text, problem, time.monotonic() - began)

    def note(self, scene: str, point: Point, text: str, problem: str, seconds: float = 0) -> None:
        """Note a check that was made already."""
        self.checks.append(
            Check(point=point, text=text, problem=problem, seconds=seconds, scene=scene)
        )

    def of(self, point: Point) -> list[Check]:
        """Return the checks of a point."""
        return [check for check in self.checks if check.point is point]

    def failed_in(self, scene: str) -> bool:
        """Tell whether a check of a scene has failed."""
        return any(check.problem for check in self.checks if check.scene == scene)

    def holds(self, point: Point) -> bool:
        """Tell whether all checks of a point hold; a point without any does not."""
        checks = self.of(point)
        return bool(checks) and not any(check.problem for check in checks)

    @property
    def failed(self) -> list[Point]:
        """The points that do not hold."""
        return [point for point in Point if not self.holds(point)]
