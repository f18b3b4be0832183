"""The times of a schedule in minutes since the epoch, also where the clock on the wall is changed.

Where a clock is changed, Debian's cron is followed:

* A job with a star at the beginning of its minute or hour follows the wall clock: it runs at every
  matching minute that the clock shows, twice where it shows one twice.
* Any other job runs once for each time it names. Where the clock is set forward over such a time,
  by less than three hours, it runs at the first minute after that; where the clock is set back, the
  first of the two is meant.

Between two changes of the clock a zone has a constant offset, and there a schedule is a plain cron
expression. So all that is asked of cronsim is a clock without a zone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from taskqueue.controller.schedules.cron import Cron

_EPOCH = datetime(1970, 1, 1)
_MINUTE = timedelta(minutes=1)
_HOUR, _DAY = 60, 24 * 60
#: A clock that is set forward by as much or more has been corrected: nothing is made up for.
_LONGEST_GAP = 3 * _HOUR
#: No two changes of a clock are closer to each other.
_PROBE = 6 * _HOUR
#: So far ahead changes of the clock are looked for at a time.
_AHEAD = 3 * _DAY
#: The first stretch of time in which the latest runs are looked for.
_FIRST_STRETCH = 2 * _HOUR


class UnknownZoneError(ValueError):
    """A time zone that is not in the database; the text names the nearest one that is."""


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes since the epoch, the first included, the last not."""

    start: int
    end: int


def load_zone(name: str) -> ZoneInfo:
    """Return a time zone of the IANA database.

    Raises:
        UnknownZoneError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = nearest_zone(name)
        hint = f"did you mean {near}?" if near else "use a name such as Europe/Berlin, or UTC"
        raise UnknownZoneError(f"is not a time zone of the IANA database: {hint}") from error


def nearest_zone(name: str) -> str:
    """Return the zone that may have been meant; "": none comes near."""
    names = _zones()
    lower = name.replace(" ", "_").lower()
    city = lower.rpartition("/")[2]
    near = (
        get_close_matches(lower, names, n=1, cutoff=0.8)
        or [one for one in names if one.rpartition("/")[2] == city][:1]
        or get_close_matches(lower, names, n=1, cutoff=0.6)
    )
    return names[near[0]] if near else ""


@cache
def _zones() -> dict[str, str]:
    """Return the names of all zones, by the same in lower case."""
    return {name.lower(): name for name in sorted(available_timezones())}


@dataclass(frozen=True, slots=True)
class Calendar:
    """When a schedule is due.

    Attributes:
        crons: due where any of them matches.
        zone: of their wall clock.
        excluded: not due in these, which are in order and do not overlap.
    """

    crons: tuple[Cron, ...]
    zone: tzinfo
    excluded: tuple[Window, ...] = ()

    def next_after(self, minute: int) -> int | None:
        """Return the first minute after this one that is due; None: there is none."""
        while (found := self.next_match(minute)) is not None:
            window = self.window_of(found)
            if window is None:
                return found
            minute = window.end - 1
        return None

    def next_match(self, minute: int) -> int | None:
        """Return as `next_after` does, whether it is excluded or not."""
        found = (self._next_of(cron, minute) for cron in self.crons)
        return min((one for one in found if one is not None), default=None)

    def window_of(self, minute: int) -> Window | None:
        """Return the excluded window a minute is in; None: it is in none."""
        place = bisect_right(self.excluded, minute, key=lambda window: window.start) - 1
        if place >= 0 and minute < self.excluded[place].end:
            return self.excluded[place]
        return None

    def matches(self, after: int, until: int) -> Iterator[int]:
        """Yield the matching minutes in (after, until], in order, excluded ones too."""
        found = self.next_match(after)
        while found is not None and found <= until:
            yield found
            found = self.next_match(found)

    def latest(self, after: int, until: int, count: int) -> list[int]:
        """Return the last matching minutes in (after, until], at most so many, in order.

        However long that time is, the work is bounded by what is found.
        """
        stretch = _FIRST_STRETCH
        while True:
            start = max(until - stretch, after)
            found = deque(self.matches(start, until), maxlen=count)
            if len(found) == count or start == after:
                return list(found)
            stretch *= 2

    # One expression.

    def _next_of(self, cron: Cron, minute: int) -> int | None:
        try:
            return (
                self._next_of_wildcard(cron, minute)
                if cron.is_wildcard
                else self._next_of_fixed(cron, minute)
            )
        except OverflowError:  # beyond the calendar
            return None

    def _next_of_fixed(self, cron: Cron, minute: int) -> int | None:
        """Return the first time it names that comes after this minute.

        The times that are named come in the order of the wall clock; while it is set back the first
        of them have passed already.
        """
        for wall in cron.matches_after(self._wall(minute)):
            found = self._first_showing(wall)
            if found is not None and found > minute:
                return found
        return None

    def _next_of_wildcard(self, cron: Cron, minute: int) -> int | None:
        """Return the first minute after this one at which the clock shows a matching time.

        From one change of the clock to the next it is as far ahead on the clock as it is in time.
        What is further ahead than that is approached in steps, as an offset is below a day.
        """
        while True:
            wall = self._wall(minute)
            ahead = next(cron.matches_after(wall), None)
            if ahead is None:
                return None
            found = minute + _minutes(ahead - wall)
            change = self._first_change(minute, min(found, minute + _AHEAD))
            if change is not None:
                if _shows(cron, self._wall(change)):
                    return change
                minute = change
            elif found <= minute + _AHEAD:
                return found
            else:
                minute = max(minute + _AHEAD, found - _AHEAD)

    # The clock.

    def _offset(self, minute: int) -> int:
        """Return by how many minutes the clock is ahead of UTC."""
        at = (_EPOCH + minute * _MINUTE).replace(tzinfo=UTC).astimezone(self.zone)
        offset = at.utcoffset()
        return 0 if offset is None else _minutes(offset)

    def _wall(self, minute: int) -> datetime:
        """Return what the clock shows."""
        return _EPOCH + (minute + self._offset(minute)) * _MINUTE

    def _first_showing(self, wall: datetime) -> int | None:
        """Return when the clock shows a time first, or is set forward over it; None: too far."""
        shown = _minutes(wall - _EPOCH)
        aware = wall.replace(tzinfo=self.zone)
        before, after = aware.utcoffset(), aware.replace(fold=1).utcoffset()
        if before is None or after is None:
            return shown
        found = shown - _minutes(before)
        gap = _minutes(after - before)
        if gap <= 0:  # the clock shows it, once or twice
            return found
        return self._first_change(found - gap, found) if gap < _LONGEST_GAP else None

    def _first_change(self, after: int, until: int) -> int | None:
        """Return the first minute in (after, until] whose offset is not that of ``after``."""
        before, offset = after, self._offset(after)
        while before < until:
            probe = min(before + _PROBE, until)
            if self._offset(probe) == offset:
                before = probe
                continue
            while probe - before > 1:
                middle = (before + probe) // 2
                if self._offset(middle) == offset:
                    before = middle
                else:
                    probe = middle
            return probe
        return None


def _shows(cron: Cron, wall: datetime) -> bool:
    """Return whether an expression matches a time of the wall clock."""
    return next(cron.matches_after(wall - _MINUTE), None) == wall


def merged(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return windows in order, with those joined that overlap."""
    result: list[Window] = []
    for window in sorted(windows, key=lambda one: one.start):
        if result and window.start <= result[-1].end:
            last = result.pop()
            window = Window(last.start, max(last.end, window.end))
        if window.start < window.end:
            result.append(window)
    return tuple(result)


def _minutes(span: timedelta) -> int:
    return span // _MINUTE
