"""Dead letters as people and as programs read them.

What a letter says was written by anybody: nothing in it reaches a terminal but printable text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskqueue.contract.names import WORK_EXCHANGE, routing_key
from taskqueue.direct.dead_letters import DeadLetter, DeadLetterKind, DeadLetterPage, RedriveResult
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import to_rfc3339

#: Columns of a line that no terminal limits.
_WIDE = 240
#: Reasons shown of letters that could not be redriven.
_REFUSALS_SHOWN = 3


def console() -> Console:
    """Return the standard output; into a pipe, lines are as long as they need to be."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out.width = _WIDE
    return out


def as_json(letters: DeadLetterPage, *, limit: int, verbose: bool) -> str:
    """Return what a program reads."""
    return json.dumps(
        {
            "total": letters.total,
            "letters": [_fields(one, verbose=verbose) for one in letters.letters[:limit]],
        },
        indent=2,
    )


def show(out: Console, name: str, letters: DeadLetterPage, *, limit: int, verbose: bool) -> None:
    """Print a table, oldest letter first."""
    shown = letters.letters[:limit]
    if not letters.total:
        out.print(f"{name} has no dead letters.")
        return
    out.print(_table(shown, verbose=verbose))
    more = letters.total - len(shown)
    if more > 0:
        out.print(f"{more} more: raise --limit.")


def redriven_text(key: QueueKey, told: RedriveResult) -> list[str]:
    """Return lines that say what became of the letters."""
    lines = [f"{_count(told.redriven)} redriven to {WORK_EXCHANGE}, key {routing_key(*key)}."]
    if told.kept_tasks:
        lines.append(
            f"{_count(told.kept_tasks)} of Tasks kept: a Task goes on or ends by its own retry "
            "policy; to run its work again, create the Task anew."
        )
    if told.kept_outcomes:
        lines.append(f"{_count(told.kept_outcomes)} kept that never were work: outcomes.")
    if told.not_chosen:
        lines.append(f"{_count(told.not_chosen)} not chosen, kept.")
    if told.beyond:
        lines.append(f"{_count(told.beyond)} not looked at: run the command again.")
    for reason in list(dict.fromkeys(told.refused))[:_REFUSALS_SHOWN]:
        lines.append(f"not redriven, kept: {_printable(reason)}")
    if told.refused:
        lines.append(f"{_count(len(told.refused))} could not be redriven.")
    lines += [f"no letter has the id {_printable(one)}." for one in told.not_found]
    return lines


def _count(number: int) -> str:
    return "1 letter" if number == 1 else f"{number} letters"


def _table(letters: Sequence[DeadLetter], *, verbose: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ["DIED", "ID", "HANDLER", "TASK", "CORRELATION ID", "BYTES", "REASON"]
    for name in (*names, "PAYLOAD") if verbose else names:
        table.add_column(name, overflow="fold", no_wrap=name == "DIED")
    for one in letters:
        cells = [
            _time(one.died) or "-",
            one.id or "-",
            one.handler or "(default)",
            one.task or one.kind.value,
            one.correlation_id or "-",
            str(one.size),
            one.reason or "-",
        ]
        if verbose:
            cells.append(_start(one))
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    return table


def _fields(letter: DeadLetter, *, verbose: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": letter.id,
        "kind": letter.kind.value,
        "died": _time(letter.died),
        "handler": letter.handler,
        "task": letter.task if letter.kind is DeadLetterKind.TASK else None,
        "correlationId": letter.correlation_id,
        "reason": letter.reason,
        "size": letter.size,
    }
    return {**fields, "payload": _start(letter)} if verbose else fields


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return to_rfc3339(seconds, "seconds")
    except (OverflowError, ValueError, OSError):  # a publisher may write any number
        return None


def _start(letter: DeadLetter) -> str:
    text = letter.start.decode(errors="replace")
    return f"{text}…" if letter.size > len(letter.start) else text


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
