"""Cron expressions: what they match on a clock without a zone, and what is wrong with one.

An expression has five fields (minute, hour, day of month, month, day of week) as in Debian's cron.
cronsim parses it, and bounds each field before it is expanded; here the clock is a wall clock
without a zone. `taskqueue.controller.schedules.calendar` brings in the zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from cronsim import CronSim, CronSimError

from taskqueue.limits import CRON_LENGTH

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
#: Of each field: its name, its least and its greatest number, and the names of its numbers.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _WEEKDAYS),
)
_DAY, _WEEKDAY = 2, 4
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LAST_SECOND = timedelta(seconds=59)
_FIRST_LAST_WEEKDAY = 22  # the last Monday of a month, say, is no earlier
_FIRST_LAST_WORKDAY = 26

#: What other programs take for an expression.
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ITEM = re.compile(r"(?P<base>\*|(?P<start>\w+)(-(?P<end>\w+))?)(/(?P<step>[0-9]+))?")


class InvalidCronError(ValueError):
    """An expression that is none, or that matches no time; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A valid expression.

    Attributes:
        text: the expression.
        is_wildcard: its minute or its hour begins with a star. Such a job follows the wall clock;
            another is to run once for each time it names, also when the clock is changed.
    """

    text: str
    is_wildcard: bool

    def matches_after(self, wall: datetime) -> Iterator[datetime]:
        """Yield the matching minutes after this one, in order, of a clock that is never changed."""
        try:
            # It counts in seconds: from the last one of a minute it is not far to the next minute.
            yield from CronSim(self.text, wall + _LAST_SECOND)
        except (OverflowError, ValueError):  # the calendar ends there
            return

    def describe(self) -> str:
        """Return the expression in words."""
        return str(CronSim(self.text, datetime(2000, 1, 1)).explain())


def parse_cron(text: str) -> Cron:
    """Read an expression.

    Raises:
        InvalidCronError: it is none, or matches no time.
    """
    if len(text) > CRON_LENGTH:
        raise InvalidCronError(f"is longer than {CRON_LENGTH} characters: use several schedules")
    fields = text.split()
    if len(fields) != len(_FIELDS):
        _refuse(text, f"has {len(fields)} fields, not five")
    try:
        sim = CronSim(text, datetime(2000, 1, 1))
    except (CronSimError, ValueError, AssertionError, TypeError) as error:
        name = next((name for name, *_ in _FIELDS if name.replace(" ", "-") in str(error)), "")
        _refuse(
            text, f"has a {name} that cannot be read, or never comes" if name else "cannot be read"
        )
    if not _can_match(sim):
        _refuse(text, "never matches: no month has such a day")
    starred = fields[0].startswith("*") or fields[1].startswith("*")
    return Cron(text, starred)


def _can_match(sim: CronSim) -> bool:
    """Return whether there can be a matching day: cronsim would look for it for 50 years."""
    if not sim.day_and:
        return True
    longest = max(_LENGTHS[month - 1] for month in sim.months)
    days = {day for day in sim.days if day > 0}
    if sim.days - days:  # the last day, or the last working day
        days |= set(range(_FIRST_LAST_WORKDAY, 32))
    return any(_can_be(day, item) for day in days if day <= longest for item in sim.weekdays)


def _can_be(day: int, item: int | tuple[int, int]) -> bool:
    """Return whether a day of a month can be a weekday, or the nth or last one of the month."""
    if isinstance(item, int):
        return True
    nth = item[1]
    return day >= _FIRST_LAST_WEEKDAY if nth < 0 else (day + 6) // 7 == nth


def _refuse(text: str, problem: str) -> NoReturn:
    nearest = nearest_cron(text)
    hint = f"write for example {nearest!r}" if nearest else "write for example '30 3 * * MON-FRI'"
    raise InvalidCronError(f"{problem}: {hint}")


def nearest_cron(text: str) -> str:
    """Return a valid expression that may have been meant; "": none comes near."""
    nickname = _NICKNAMES.get(text.strip().lower())
    if nickname:
        return nickname
    fields = text.upper().replace("?", "*").split()
    if fields and re.fullmatch(r"[0-9]{4}", fields[-1]):
        fields.pop()  # a year
    if len(fields) == len(_FIELDS) + 1:
        fields = fields[1:]  # a field for seconds
    if len(fields) == len(_FIELDS) - 1:
        fields.append("*")
    nearest = [_nearest_field(field, place) for place, field in enumerate(fields)]
    if len(nearest) != len(_FIELDS) or not all(nearest):
        return ""
    proposed = " ".join(nearest)
    try:
        return proposed if _can_match(CronSim(proposed, datetime(2000, 1, 1))) else ""
    except (CronSimError, ValueError, AssertionError, TypeError):
        return ""


def _nearest_field(field: str, place: int) -> str:
    """Return a field with what can be read of it; "": nothing can."""
    if place >= len(_FIELDS):
        return ""
    items = [_nearest_item(item, place) for item in field.split(",")]
    return ",".join(dict.fromkeys(item for item in items if item))


def _nearest_item(item: str, place: int) -> str:
    """Return an item of a field with its numbers in their bounds, and its range in order."""
    _, least, greatest, _ = _FIELDS[place]
    if _is_special(item, place):
        return item
    match = _ITEM.fullmatch(item)
    if match is None:
        return ""
    step = match["step"]
    suffix = f"/{min(max(int(step[:4]), 1), greatest)}" if step else ""
    if match["base"] == "*":
        return f"*{suffix}"
    numbers = [_number(one, place) for one in (match["start"], match["end"]) if one is not None]
    if None in numbers:
        return ""
    clamped = sorted(min(max(one, least), greatest) for one in numbers if one is not None)
    return "-".join(map(str, clamped)) + suffix


def _is_special(item: str, place: int) -> bool:
    if place == _DAY:
        return item in ("L", "LW")
    return place == _WEEKDAY and re.fullmatch(r"[0-7]L|(?:[0-7]|[A-Z]{3})#[1-5]", item) is not None


def _number(text: str, place: int) -> int | None:
    _, least, _, names = _FIELDS[place]
    if text.isascii() and text.isdigit():
        return int(text[:4])
    return names.index(text[:3]) + least if text[:3] in names else None
