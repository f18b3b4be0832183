"""The times of schedules: against Debian's cron around each change of a clock, else croniter."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.schedules.calendar import (
    Calendar,
    UnknownZoneError,
    Window,
    load_zone,
    merged,
    nearest_zone,
)
from taskqueue.controller.schedules.cron import parse_cron
from tests.unit.controller.schedules.debian_cron import (
    PlainCron,
    minutes_run,
    transitions,
    wall_minutes,
)

YEARS = range(2000, 2030)
DAY = 24 * 60
GUIDE = Path(__file__).parents[4] / "docs/guides/schedules.md"

#: Jobs of a fixed time, and wildcard jobs, near the hours at which clocks are changed.
FIXED = (
    "30 2 * * *",
    "0 0 * * *",
    "15,45 1-3 * * *",
    "59 23 * * *",
    "0 3 * * SUN",
    "5-10 0,2 * * *",
    "0 12 * * *",
    "10 0,1,2,3 1-31/2 * SUN",
)
WILDCARD = (
    "*/20 * * * *",
    "* 2 * * *",
    "*/15 1-3 * * *",
    "30 * * * *",
    "* 0 * * *",
    "0 */2 * * *",
    "45 */3 * * MON-FRI",
)

#: Zones whose clocks were changed in ways of their own: at midnight, by half an hour, by three
#: hours, by a whole day, twice a year more than others.
SAMPLE = (
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Asia/Tehran",
    "Asia/Pyongyang",
    "America/Caracas",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Antarctica/Troll",
    "Antarctica/Casey",
    "Pacific/Apia",
)


@cache
def changes(zone: str) -> list[int]:
    return transitions(ZoneInfo(zone), YEARS)


def calendar(*crons: str, zone: str = "UTC", excluded: tuple[Window, ...] = ()) -> Calendar:
    return Calendar(tuple(map(parse_cron, crons)), load_zone(zone), merged(excluded))


def at(text: str) -> int:
    """Return the minutes since the epoch of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) // 60


def check_around(zone: str, change: int) -> None:
    """Compare two days around a change of the clock with the plain enumeration."""
    start, end = change - DAY, change + DAY
    walls = [wall_minutes(ZoneInfo(zone), minute) for minute in range(start - 1, end)]
    for text in FIXED + WILDCARD:
        times = calendar(text, zone=zone)
        expected = minutes_run(PlainCron(text), walls, start)
        assert list(times.matches(start - 1, end - 1)) == expected, (zone, text, change)
        assert times.latest(start - 1, end - 1, 7) == expected[-7:], (zone, text, change)


# Changes of a clock


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_times_around_a_change_of_the_clock_are_those_of_debian_cron(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(SAMPLE))
    check_around(zone, data.draw(st.sampled_from(changes(zone))))


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Pacific/Apia", "2011-12-30 10:00"),  # a whole day is skipped
        ("Antarctica/Casey", "2018-03-10 17:00"),  # three hours back
        ("America/Sao_Paulo", "2017-10-15 03:00"),  # midnight is skipped
        ("Australia/Lord_Howe", "2024-04-06 15:00"),  # half an hour back
        ("Asia/Pyongyang", "2018-05-04 15:00"),
    ],
)
def test_strange_changes_of_the_clock_are_tried_each_time(zone: str, day: str) -> None:
    near = min(changes(zone), key=lambda change: abs(change - at(day)))
    assert abs(near - at(day)) < DAY
    check_around(zone, near)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_next_time_does_not_depend_on_where_the_search_begins(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(SAMPLE))
    change = data.draw(st.sampled_from(changes(zone)))
    times = calendar(data.draw(st.sampled_from(FIXED + WILDCARD)), zone=zone)
    all_times = list(times.matches(change - 2 * DAY, change + 2 * DAY))
    begin = change + data.draw(st.integers(-DAY, DAY))
    expected = next((one for one in all_times if one > begin), None)
    assert times.next_match(begin) == expected or expected is None


def test_search_may_begin_while_the_clock_shows_times_again() -> None:
    second = at("2026-10-25 01:20")  # 02:20 CET; it was 02:20 CEST an hour before
    times = calendar("15,45 2 * * *", zone="Europe/Berlin")
    assert times.next_match(second) == at("2026-10-26 01:15")
    assert times.next_match(second - 60) == at("2026-10-25 00:45")


@pytest.mark.parametrize("text", ["*/30 3 1 7 *", "0 3 1 7 *"])
def test_time_far_ahead_is_one_of_the_offset_that_holds_then(text: str) -> None:
    times = calendar(text, zone="Europe/Berlin")
    assert times.next_match(at("2026-01-05")) == at("2026-07-01 01:00")
    assert times.next_match(at("2026-01-05") - 12 * 365 * DAY) == at("2014-07-01 01:00")


@cache
def _distinct_zones() -> list[str]:
    """Return one of all zones whose clocks are changed alike in these years."""
    found: dict[tuple[tuple[int, int, int], ...], str] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        steps = (
            (at, wall_minutes(zone, at - 1) - at, wall_minutes(zone, at) - at)
            for at in changes(name)
        )
        found.setdefault(tuple(steps), name)
    return list(found.values())


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", range(8))
def test_every_change_of_every_zone_for_30_years_is_that_of_debian_cron(part: int) -> None:
    for zone in _distinct_zones()[part::8]:
        for change in changes(zone):
            check_around(zone, change)


def test_rows_of_the_guides_table_are_true() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (\S+) \| (.+?) \| (.+?) \|$", GUIDE.read_text(), re.M)
    assert len(rows) >= 12
    for text, zone, date, said in rows:
        day = at(f"{date} 00:00")
        local = ZoneInfo(zone)
        runs = [
            datetime.fromtimestamp(minute * 60, local)
            for minute in calendar(text, zone=zone).matches(day - DAY, day + 2 * DAY)
        ]
        found = [f"{one:%H:%M %Z}" for one in runs if f"{one:%Y-%m-%d}" == date]
        words = re.fullmatch(r"every (\d+) minutes, (\d+) runs", said)
        if words:
            steps = {b - a for a, b in pairwise(runs)}
            assert len(found) == int(words[2]), (text, date, found)
            assert timedelta(minutes=int(words[1])) in steps
        else:
            assert (", ".join(found) or "none") == said, (text, zone, date)


# Elsewhere


def _items(least: int, greatest: int) -> st.SearchStrategy[str]:
    number = st.integers(least, greatest)
    spans = st.sets(number, min_size=2, max_size=2).map(sorted)  # croniter takes 3-3 for all
    return st.one_of(
        number.map(str),
        spans.map(lambda one: f"{one[0]}-{one[1]}"),
        st.tuples(spans, st.integers(1, 9)).map(lambda one: f"{one[0][0]}-{one[0][1]}/{one[1]}"),
    )


def _field(least: int, greatest: int) -> st.SearchStrategy[str]:
    return st.lists(_items(least, greatest), min_size=1, max_size=3).map(",".join)


#: Of two restricted days croniter takes one that names all for none: one of them is a star.
DAYS = st.one_of(
    st.just("* * *"),
    st.tuples(_field(1, 28), _field(1, 12)).map("{0[0]} {0[1]} *".format),
    st.tuples(_field(1, 12), _field(0, 6)).map("* {0[0]} {0[1]}".format),
)
EXPRESSIONS = st.tuples(
    st.one_of(st.just("*"), st.integers(1, 30).map("*/{}".format), _field(0, 59)),
    st.one_of(st.just("*"), st.integers(1, 12).map("*/{}".format), _field(0, 23)),
    DAYS,
).map(" ".join)


@given(text=EXPRESSIONS, start=st.integers(at("2000-01-01"), at("2035-01-01")))
@settings(max_examples=60, deadline=None)
def test_times_without_changes_of_the_clock_are_those_of_croniter(text: str, start: int) -> None:
    times = calendar(text)
    theirs = croniter(text, datetime.fromtimestamp(start * 60, UTC))
    found = start
    for _ in range(5):
        following = times.next_match(found)
        assert following == int(theirs.get_next(float)) // 60
        assert following is not None
        found = following


def test_several_expressions_are_due_where_any_matches() -> None:
    times = calendar("0 3 * * *", "30 3 * * *", "0 3 * * MON")
    found = list(times.matches(at("2026-01-05 00:00"), at("2026-01-05 23:59")))
    assert found == [at("2026-01-05 03:00"), at("2026-01-05 03:30")]


def test_excluded_windows_are_passed_over_at_once() -> None:
    windows = (
        Window(at("2026-01-01"), at("2026-02-01")),
        Window(at("2026-01-20"), at("2026-03-01")),
        Window(at("2026-03-01"), at("2027-03-01")),
    )
    assert merged(windows) == (Window(at("2026-01-01"), at("2027-03-01")),)
    times = calendar("* * * * *", excluded=windows)
    assert times.next_after(at("2026-01-01") - 2) == at("2026-01-01") - 1
    assert times.next_after(at("2026-01-01") - 1) == at("2027-03-01")


def test_latest_times_are_found_without_going_through_all_before() -> None:
    times = calendar("* * * * *", zone="Europe/Berlin")
    until = at("2026-06-01")
    assert times.latest(at("1990-01-01"), until, 3) == [until - 2, until - 1, until]
    assert times.latest(until - 2, until, 100) == [until - 1, until]


def test_there_is_no_time_beyond_the_calendar() -> None:
    end = at("9999-12-31 23:00")
    assert calendar("0 0 1 1 *", zone="Europe/Berlin").next_after(end) is None
    assert calendar("* 0 1 1 *", zone="Europe/Berlin").next_after(end) is None


# Zones


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("America/New-York", "America/New_York"),
        ("utc+0", "Etc/UTC"),
        ("../../etc/passwd", ""),
        ("x" * 64, ""),
    ],
)
def test_unknown_zone_is_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    assert nearest == "Etc/UTC" or nearest_zone(name) == nearest
    if name != "europe/berlin":  # found as it is where file names have no case
        with pytest.raises(UnknownZoneError, match="not a time zone"):
            load_zone(name)


@given(name=st.text(max_size=64))
@settings(max_examples=50, deadline=None)
def test_whatever_a_zone_is_named_it_is_loaded_or_refused(name: str) -> None:
    with suppress(UnknownZoneError):
        assert load_zone(name).key == name
