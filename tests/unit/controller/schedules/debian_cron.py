"""What Debian's cron would do, minute by minute: the plainest form of its main loop.

It is written from the behaviour that cron(8) and its source describe, and shares nothing with the
code under test. A time of the wall clock is a number of minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_NAMES = {
    3: ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    4: ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}
_HOUR = 60
_LARGE = 3 * _HOUR
#: No two changes are closer.
_STEP = 12 * _HOUR


def wall_minutes(zone: tzinfo, minute: int) -> int:
    """Return what the clock shows at this minute since the epoch."""
    at = (EPOCH + timedelta(minutes=minute)).astimezone(zone)
    offset = at.utcoffset()
    assert offset is not None
    return minute + offset // timedelta(minutes=1)


@lru_cache(maxsize=10_000)
def _fields(wall: int) -> tuple[int, int, int, int, int]:
    at = EPOCH + timedelta(minutes=wall)
    return at.minute, at.hour, at.day, at.month, at.isoweekday()


class PlainCron:
    """An expression as sets of numbers."""

    def __init__(self, text: str) -> None:
        fields = text.split()
        self.sets = [self._numbers(field, place) for place, field in enumerate(fields)]
        self.is_wildcard = fields[0].startswith("*") or fields[1].startswith("*")
        self.both_days = fields[2].startswith("*") or fields[4].startswith("*")

    @staticmethod
    def _numbers(field: str, place: int) -> set[int]:
        names = _NAMES.get(place, [])
        least, greatest = _RANGES[place]

        def number(text: str) -> int:
            return names.index(text) + (place == 3) if text in names else int(text)

        found: set[int] = set()
        for item in field.split(","):
            base, _, step = item.partition("/")
            start, _, end = base.partition("-")
            first = least if start == "*" else number(start)
            last = greatest if start == "*" else number(end or start)
            found.update(range(first, last + 1, int(step or 1)))
        return found

    def matches(self, wall: int) -> bool:
        minute, hour, day, month, weekday = _fields(wall)
        minutes, hours, days, months, weekdays = self.sets
        if minute not in minutes or hour not in hours or month not in months:
            return False
        is_day, is_weekday = day in days, weekday in weekdays or weekday % 7 in weekdays
        return (is_day and is_weekday) if self.both_days else (is_day or is_weekday)


def minutes_run(cron: PlainCron, walls: Sequence[int], first: int) -> list[int]:
    """Return the minutes at which a job is started.

    Args:
        cron: its expression.
        walls: what the clock shows at each minute; the first is only what it showed before.
        first: the minute of the second.
    """
    started, virtual = [], walls[0]
    for minute, running in enumerate(walls[1:], first):
        ahead = running - virtual
        if ahead == 1 or ahead > _LARGE or ahead <= -_LARGE:
            virtual = running
            run = cron.matches(running)
        elif ahead > 0:  # set forward: wildcard jobs go on, the others are caught up with, once
            missed = range(virtual + 1, running + 1)
            virtual = running
            run = cron.matches(running) if cron.is_wildcard else any(map(cron.matches, missed))
        else:  # set back: only wildcard jobs run, until the clock has caught up
            run = cron.is_wildcard and cron.matches(running)
        if run:
            started.append(minute)
    return started


def transitions(zone: tzinfo, years: range) -> list[int]:
    """Return the first minute of each new offset, found step by step and then minute by minute."""
    start = int(datetime(years[0], 1, 1, tzinfo=UTC).timestamp()) // 60
    end = int(datetime(years[-1] + 1, 1, 1, tzinfo=UTC).timestamp()) // 60
    found = []

    def offset(minute: int) -> int:
        return wall_minutes(zone, minute) - minute

    before = offset(start)
    for probe in range(start + _STEP, end, _STEP):
        now = offset(probe)
        if now != before:
            found.append(
                next(m for m in range(probe - _STEP + 1, probe + 1) if offset(m) != before)
            )
            before = now
    return found
