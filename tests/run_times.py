"""How long the groups and files of a test run took, for its summary.

A file's time includes the fixtures that its tests made. CPU is that of the test's process and of
its children that have ended, not that of the cluster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

#: A file that took so many seconds should begin early: see `LONG_FILES` in tests/parallel.py.
LONG_SECONDS = 60.0


@dataclass
class Times:
    """When the first test began and the last ended, in seconds since the epoch, and sums."""

    began: float
    ended: float
    seconds: float
    cpu: float

    def add(self, other: Times) -> None:
        """Take another one in."""
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.seconds += other.seconds
        self.cpu += other.cpu


class RunTimes:
    """The times of groups and of files, by name."""

    def __init__(self) -> None:
        self._groups: dict[str, Times] = {}
        self._files: dict[str, Times] = {}

    @contextmanager
    def measuring(self, group: str, file: str) -> Iterator[None]:
        """Measure a test."""
        began, cpu = time.time(), sum(os.times()[:4])
        try:
            yield
        finally:
            ended = time.time()
            times = Times(began, ended, ended - began, sum(os.times()[:4]) - cpu)
            _add(self._groups, group, times)
            _add(self._files, file, times)

    def dump(self) -> list[dict[str, list[float]]]:
        """Return what `load` takes, of types that pytest-xdist sends."""
        return [
            {name: [one.began, one.ended, one.seconds, one.cpu] for name, one in known.items()}
            for known in (self._groups, self._files)
        ]

    def load(self, dumped: Iterable[dict[str, list[float]]]) -> None:
        """Take in the times of another process."""
        for known, names in zip((self._groups, self._files), dumped, strict=True):
            for name, values in names.items():
                _add(known, name, Times(*values))

    def lines(self, *, early: Iterable[str], longest: int = 20) -> Iterator[str]:
        """Yield lines about the groups and the files that took longest.

        Args:
            early: the files that begin early because they take long.
            longest: how many files.
        """
        start = min((one.began for one in self._groups.values()), default=0.0)
        for name, one in sorted(self._groups.items(), key=lambda entry: entry[1].began):
            yield (
                f"{name}: from {_clock(one.began - start)} to {_clock(one.ended - start)}, "
                f"{one.seconds:.0f} s of tests, {one.cpu:.0f} s of CPU"
            )
        known = set(early)
        ranked = sorted(self._files.items(), key=lambda entry: -entry[1].seconds)
        for name, one in ranked[:longest]:
            late = one.seconds >= LONG_SECONDS and name not in known
            hint = "; add it to LONG_FILES in tests/parallel.py" if late else ""
            yield f"{one.seconds:6.0f} s, {one.cpu:4.0f} s of CPU: {name}{hint}"


def _add(known: dict[str, Times], name: str, times: Times) -> None:
    if name in known:
        known[name].add(times)
    else:
        known[name] = replace(times)  # its group and its file grow apart


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
