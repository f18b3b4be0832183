"""Cron expressions: what is refused, what is proposed instead, and that nothing takes long."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

import cronsim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.schedules.cron import InvalidCronError, nearest_cron, parse_cron
from taskqueue.limits import CRON_LENGTH

START = datetime(2026, 1, 1)

#: So often a day is tried, or the clock moved on, for one expression and its next time.
MOST_STEPS = 5000


class Steps:
    """Counts what cronsim does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("match_day", "tick"):
            monkeypatch.setattr(cronsim.CronSim, name, self._counted(name))

    def _counted(self, name: str) -> object:
        plain = getattr(cronsim.CronSim, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.count += 1
            return plain(*args, **kwargs)

        return counted


def is_refused(text: str) -> bool:
    try:
        cron = parse_cron(text)
    except InvalidCronError:
        return True
    list(islice(cron.matches_after(START), 1))
    return False


@pytest.mark.parametrize(
    "text",
    [
        "1--100000000 * * * *",
        "0-99999999999 * * * *",
        "*/0 * * * *",
        f"{'9' * 100} * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "0 0 30 2 *",
        "0 0 31 4,6,9,11 *",
        "0 0 */31 * MON#2",  # the first of a month is never a second Monday
        "0 0 */30 2 MON#5",
        "0 0 1 * * 2026",
        "* * * *",
        "",
        " ",
        "@reboot",
        "@daily",
        "² * * * *",
        "0 0 L-3 * *",
        "0 0 * * MON#6",
        "0 0 * * FOO",
        "a b c d e",
        "0 0 * * *\n0 0 * * *",
        ",".join(map(str, range(60))) + " * * * *",  # longer than an expression may be
    ],
)
def test_hostile_expression_is_refused_in_few_steps(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    with pytest.raises(InvalidCronError, match=r"write for example '|use several schedules"):
        parse_cron(text)
    assert steps.count < MOST_STEPS


ALPHABET = "0123456789*/-,#L MONJANW?@\t"
PIECES = st.sampled_from(
    ["*", "*/2", "*/31", "0", "1-5", "29", "30", "31", "2", "L", "LW", "MON#5", "5L", "1,31", "7"]
)


@given(text=st.one_of(st.text(ALPHABET, max_size=150), st.text(max_size=150)))
@settings(max_examples=120, deadline=None)
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    if len(text) > CRON_LENGTH:
        assert is_refused(text)
    is_refused(text)
    nearest_cron(text[:CRON_LENGTH])


@given(fields=st.tuples(*[PIECES] * 5))
@settings(max_examples=120, deadline=None)
def test_whatever_days_are_asked_for_the_next_one_is_found_in_few_steps(
    fields: tuple[str, ...],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        is_refused(" ".join(fields))
        assert steps.count < MOST_STEPS


@given(fields=st.tuples(*[PIECES] * 5))
@settings(max_examples=100, deadline=None)
def test_expression_that_is_not_refused_has_a_time(fields: tuple[str, ...]) -> None:
    try:
        cron = parse_cron(" ".join(fields))
    except InvalidCronError:
        return
    assert list(islice(cron.matches_after(START), 1))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("5-1 * * * *", "1-5 * * * *"),
        ("60 25 0 13 9", "59 23 1 12 7"),
        ("*/0 * * * *", "*/1 * * * *"),
        ("0 3 * *", "0 3 * * *"),
        ("0 0 3 * * *", "0 3 * * *"),
        ("0 3 ? * MONDAY", "0 3 * * 1"),
        ("0 0 * january-march *", "0 0 * 1-3 *"),
        ("@Daily", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        ("0 0 30 2 *", ""),
        ("nonsense", ""),
        ("0 0 * * FOO", ""),
        ("0 3 1 * * 2026", "0 3 1 * *"),
    ],
)
def test_nearest_right_expression_is_proposed(text: str, nearest: str) -> None:
    assert nearest_cron(text) == nearest


@given(text=st.text(ALPHABET, max_size=100))
@settings(max_examples=100, deadline=None)
def test_what_is_proposed_is_valid_and_proposes_itself(text: str) -> None:
    nearest = nearest_cron(text)
    if nearest:
        parse_cron(nearest)
        assert nearest_cron(nearest) == nearest


@pytest.mark.parametrize(
    ("text", "wildcard"),
    [
        ("0 3 * * *", False),
        ("*/5 3 * * *", True),
        ("0 * * * *", True),
        ("0-59 0-23 * * *", False),
        ("0 */2 * * *", True),
    ],
)
def test_star_at_the_beginning_of_minute_or_hour_makes_a_wildcard(
    text: str, wildcard: bool
) -> None:
    assert parse_cron(text).is_wildcard is wildcard


def test_expression_is_described_in_words() -> None:
    assert "03:30" in parse_cron("30 3 * * *").describe()
