"""The table and the JSON of dead letters: no control character reaches the terminal."""

import json
from io import StringIO
from typing import Any

from rich.console import Console

from taskqueue.cli.output import as_json, print_table, redrive_report
from taskqueue.direct.dead_letters import DeadLetter, DeadLetterKind, DeadLetterPage, RedriveResult


def dead_letter(**changed: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "id": "m-1",
        "kind": DeadLetterKind.DIRECT,
        "died": 1_700_000_000.0,
        "handler": "resize",
        "task": "",
        "correlation_id": "c-1",
        "reason": "ValueError: no",
        "size": 3,
        "body_start": b"abc",
    }
    return DeadLetter(**{**fields, **changed})


def printed(*messages: DeadLetter, total: int = 0, limit: int = 50, verbose: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, width=240, highlight=False, markup=False)
    page = DeadLetterPage(messages, total or len(messages))
    print_table(console, "shop/q", page, limit=limit, verbose=verbose)
    return out.getvalue()


def test_table_has_a_row_for_each_message() -> None:
    header, line = printed(dead_letter()).splitlines()
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


def test_table_shows_a_dash_for_what_is_unknown() -> None:
    empty = dead_letter(id="", died=None, handler="", correlation_id="", reason="")
    assert printed(empty).splitlines()[1].split() == [
        "-",
        "-",
        "(default)",
        "direct",
        "-",
        "3",
        "-",
    ]


def test_table_escapes_control_characters_and_keeps_markup() -> None:
    text = printed(
        dead_letter(reason="[red]\x1b[31m\r\n\x9b2J", body_start=b"\x1b]0;t\x07"), verbose=True
    )
    assert "[red]\\x1b[31m\\r\\n\\x9b2J" in text
    assert "\\x1b]0;t\\x07" in text
    assert not set(text) & set("\x1b\r\x9b\x07")


def test_table_ends_at_the_limit_and_counts_the_rest() -> None:
    text = printed(*[dead_letter(id=f"m-{number}") for number in range(5)], total=7, limit=2)
    assert "m-1" in text
    assert "m-2" not in text
    assert "5 more: raise --limit." in text


def test_json_has_no_time_that_the_calendar_does_not_have() -> None:
    assert (
        json.loads(as_json(DeadLetterPage((dead_letter(died=1e300),), 1), limit=1, verbose=False))[
            "letters"
        ][0]["died"]
        is None
    )


def test_json_has_every_field() -> None:
    task = dead_letter(kind=DeadLetterKind.TASK, task="shop/a", size=300, body_start=b"\xffabc")
    result = json.loads(as_json(DeadLetterPage((dead_letter(), task), 2), limit=9, verbose=True))
    assert result["total"] == 2
    assert result["letters"][0]["task"] is None
    assert result["letters"][1] == {
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


def test_redrive_report_says_what_was_kept_and_why() -> None:
    result = RedriveResult(
        exchange="taskqueue.direct",
        redriven=2,
        kept_tasks=1,
        refused=["312 NO_ROUTE"] * 4,
        not_found=("m\x1b",),
    )
    lines = redrive_report(("shop", "q"), result)
    assert lines[0] == "2 messages redriven to taskqueue.direct, key shop.q."
    assert "create the Task again" in lines[1]
    assert lines[2:] == [
        "not redriven, kept: 312 NO_ROUTE",
        "4 messages could not be redriven.",
        "no message has the id m\\x1b.",
    ]
