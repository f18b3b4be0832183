"""Dead letters in print: nothing a publisher wrote moves the terminal."""

import json
from io import StringIO
from typing import Any

from rich.console import Console

from taskqueue.cli.output import as_json, redriven_text, show
from taskqueue.direct.dead_letters import DeadLetter, DeadLetterKind, DeadLetterPage, RedriveResult


def letter(**changed: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "id": "m-1",
        "kind": DeadLetterKind.DIRECT,
        "died": 1_700_000_000.0,
        "handler": "resize",
        "task": "",
        "correlation_id": "c-1",
        "reason": "ValueError: no",
        "size": 3,
        "start": b"abc",
    }
    return DeadLetter(**{**fields, **changed})


def shown(*letters: DeadLetter, total: int = 0, limit: int = 50, verbose: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, width=240, highlight=False, markup=False)
    found = DeadLetterPage(letters, total or len(letters))
    show(console, "shop/q", found, limit=limit, verbose=verbose)
    return out.getvalue()


def test_a_letter_is_a_line() -> None:
    header, line = shown(letter()).splitlines()
    assert header.split() == [
        "DIED",
        "ID",
        "HANDLER",
        "TASK",
        "CORRELATION",
        "ID",
        "BYTES",
        "REASON",
    ]
    assert line.split() == [
        "2023-11-14T22:13:20Z", "m-1", "resize", "direct", "c-1", "3", "ValueError:", "no",
    ]  # fmt: skip


def test_what_is_not_known_is_a_dash_or_a_word() -> None:
    empty = letter(id="", died=None, handler="", correlation_id="", reason="")
    assert shown(empty).splitlines()[1].split() == ["-", "-", "(default)", "direct", "-", "3", "-"]


def test_control_characters_and_markup_are_shown_as_they_are() -> None:
    text = shown(letter(reason="[red]\x1b[31m\r\n\x9b2J", start=b"\x1b]0;t\x07"), verbose=True)
    assert "[red]\\x1b[31m\\r\\n\\x9b2J" in text
    assert "\\x1b]0;t\\x07" in text
    assert not set(text) & set("\x1b\r\x9b\x07")


def test_no_more_than_the_limit_is_shown_and_the_rest_is_told() -> None:
    text = shown(*[letter(id=f"m-{number}") for number in range(5)], total=7, limit=2)
    assert "m-1" in text
    assert "m-2" not in text
    assert "5 more: raise --limit." in text


def test_a_time_no_calendar_has_is_unknown() -> None:
    assert (
        json.loads(as_json(DeadLetterPage((letter(died=1e300),), 1), limit=1, verbose=False))[
            "letters"
        ][0]["died"]
        is None
    )


def test_programs_read_json() -> None:
    task = letter(kind=DeadLetterKind.TASK, task="shop/a", size=300, start=b"\xffabc")
    told = json.loads(as_json(DeadLetterPage((letter(), task), 2), limit=9, verbose=True))
    assert told["total"] == 2
    assert told["letters"][0]["task"] is None
    assert told["letters"][1] == {
        "id": "m-1",
        "kind": "task",
        "died": "2023-11-14T22:13:20Z",
        "handler": "resize",
        "task": "shop/a",
        "correlationId": "c-1",
        "reason": "ValueError: no",
        "size": 300,
        "payload": "\ufffdabc…",
    }


def test_a_redrive_says_what_stays_and_why() -> None:
    told = RedriveResult(
        redriven=2, kept_tasks=1, refused=["312 NO_ROUTE"] * 4, not_found=("m\x1b",)
    )
    lines = redriven_text(("shop", "q"), told)
    assert lines[0] == "2 letters redriven to taskqueue.work, key shop.q."
    assert "create the Task anew" in lines[1]
    assert lines[2:] == [
        "not redriven, kept: 312 NO_ROUTE",
        "4 letters could not be redriven.",
        "no letter has the id m\\x1b.",
    ]
