"""What arrives: made from a seed, or recorded.

Synthetic arrivals are a Poisson process whose rate changes with time, made by thinning (Lewis and
Shedler, 1979); a rate that is steady is one number. Run times are bounded, so that no load lasts
for ever.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_RECORDED = Path(__file__).parent / "recorded.csv"
#: What is looked at after the last arrival: going to zero is part of the cost.
_AFTER_SECONDS = 420.0

Draw = Callable[[random.Random], float]


@dataclass(frozen=True, slots=True)
class Job:
    """One message: when it arrives, and how long it runs, in seconds."""

    arrives: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCase:
    """Jobs, and the limits that every system gets for them.

    Attributes:
        name: of the load.
        jobs: by the time of their arrival.
        target: backlog one worker is meant to have.
        max_replicas: never more workers.
        steady: the stretch of time in which the load is the same all along; None: it never is.
        end: until when it is looked at.
    """

    name: str
    jobs: tuple[Job, ...]
    target: int = 5
    max_replicas: int = 10
    steady: tuple[float, float] | None = None

    @property
    def end(self) -> float:
        """Until when it is looked at."""
        return self.jobs[-1].arrives + _AFTER_SECONDS


def about(seconds: float, spread: float = 0.2) -> Draw:
    """Return run times evenly distributed about one."""
    return lambda dice: seconds * dice.uniform(1 - spread, 1 + spread)


def lognormal(median: float, sigma: float, *, most: float) -> Draw:
    """Return run times with a heavy tail that ends at ``most``."""
    return lambda dice: min(dice.lognormvariate(math.log(median), sigma), most)


def pareto(least: float, alpha: float, *, most: float) -> Draw:
    """Return run times with a heavier tail that ends at ``most``."""
    return lambda dice: min(least * dice.paretovariate(alpha), most)


def arrivals(
    rate: Callable[[float], float], *, highest: float, until: float, seed: int, run: Draw
) -> tuple[Job, ...]:
    """Return what arrives at a rate of so many a second, which is never above ``highest``."""
    dice = random.Random(seed)

    def thinned() -> Iterator[Job]:
        now = 0.0
        while (now := now + dice.expovariate(highest)) < until:
            if dice.random() * highest < rate(now):
                yield Job(now, run(dice))

    return tuple(thinned())


def burst(number: int, *, seconds: float, at: float = 0.0, spread: float = 0.0) -> tuple[Job, ...]:
    """Return this many at once."""
    dice = random.Random(number)
    return tuple(Job(at, about(seconds, spread)(dice)) for _ in range(number))


def steady(seed: int, per_second: float = 4.5) -> LoadCase:
    """The same rate for 20 minutes, near what 5 workers can do."""
    jobs = arrivals(
        lambda now: per_second, highest=per_second, until=1200, seed=seed, run=about(1.0)
    )
    return LoadCase(name="steady", jobs=jobs, steady=(120.0, 1200.0))


def constant(seed: int, per_second: float = 4.5, seconds: float = 1.0) -> LoadCase:
    """As steady as can be: one after the other, without any chance."""
    jobs = tuple(Job(number / per_second, seconds) for number in range(int(1200 * per_second)))
    return LoadCase(name="constant", jobs=jobs, steady=(120.0, 1200.0))


def step(seed: int) -> LoadCase:
    """One every 2 s; from 5 to 10 minutes 7 a second; one every 2 s again."""

    def rate(now: float) -> float:
        return 7.0 if 300 <= now < 600 else 0.5

    jobs = arrivals(rate, highest=7, until=1200, seed=seed, run=about(1.0))
    return LoadCase(name="step", jobs=jobs)


def sawtooth(seed: int) -> LoadCase:
    """Six times from none to 8 a second within 3 minutes, then nothing for 2."""

    def rate(now: float) -> float:
        at = now % 300
        return 8 * at / 180 if at < 180 else 0.0

    jobs = arrivals(rate, highest=8, until=1800, seed=seed, run=about(1.0))
    return LoadCase(name="sawtooth", jobs=jobs)


def diurnal(seed: int) -> LoadCase:
    """A day of an hour: a quiet night, 6 a second at noon."""

    def rate(now: float) -> float:
        return 6 * math.pow(max(math.sin(2 * math.pi * (now / 3600 - 0.25)), 0.0), 1.5)

    jobs = arrivals(rate, highest=6, until=3600, seed=seed, run=about(1.0))
    return LoadCase(name="diurnal", jobs=jobs)


def lognormal_times(seed: int) -> LoadCase:
    """Four every 5 s in turns of 10 minutes and pauses of 5; most run a second, some minutes."""

    def rate(now: float) -> float:
        return 0.8 if now % 900 < 600 else 0.0

    jobs = arrivals(rate, highest=0.8, until=3600, seed=seed, run=lognormal(1.0, 1.5, most=180))
    return LoadCase(name="lognormal", jobs=jobs, target=2)


def pareto_times(seed: int) -> LoadCase:
    """Bursts of 40 about every 4 minutes; most run a second, some minutes."""
    dice = random.Random(seed)
    draw = pareto(0.5, 1.1, most=180)
    jobs, now = [], 0.0
    while (now := now + dice.expovariate(1 / 240)) < 3600:
        jobs += [Job(now + dice.uniform(0, 2), draw(dice)) for _ in range(40)]
    return LoadCase(name="pareto", jobs=tuple(sorted(jobs, key=lambda job: job.arrives)), target=2)


def recorded(seed: int, target: int = 2) -> LoadCase:
    """A quarter of an hour of a machine that builds and tests, as it was; see recorded.csv."""
    lines = _RECORDED.read_text().splitlines()
    pairs = (line.split(",") for line in lines if line and not line.startswith("#"))
    jobs = tuple(Job(float(arrives), float(seconds)) for arrives, seconds in pairs)
    return LoadCase(name="recorded", jobs=jobs, target=target, max_replicas=20)


def recorded_by_five(seed: int) -> LoadCase:
    """The same with 5 per worker: long ones wait for their target, whoever scales."""
    return replace(recorded(seed, target=5), name="recorded by five")


Make = Callable[[int], LoadCase]

ALL: tuple[Make, ...] = (
    constant,
    steady,
    step,
    sawtooth,
    diurnal,
    lognormal_times,
    pareto_times,
    recorded,
    recorded_by_five,
)
