"""Dead letters as a table for people and as JSON for programs.

Anybody may have published a dead letter: only printable characters of it reach a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskqueue.cli.text_table import printable
from taskqueue.contract.names import routing_key
from taskqueue.direct.dead_letters import DeadLetter, DeadLetterKind, DeadLetterPage, RedriveResult
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import to_rfc3339

#: Width of a table that is not written to a terminal, in columns.
_WIDTH_WITHOUT_TERMINAL = 240
#: Distinct reasons shown of messages that could not be redriven.
_MAX_REFUSALS = 3


def console() -> Console:
    """Return a console on standard output that does not wrap a table at 80 columns in a pipe."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out.width = _WIDTH_WITHOUT_TERMINAL
    return out


def as_json(page: DeadLetterPage, *, limit: int, verbose: bool) -> str:
    """Return the first ``limit`` dead letters as a JSON object."""
    messages = [_fields(message, verbose=verbose) for message in page.messages[:limit]]
    return json.dumps({"total": page.total, "letters": messages}, indent=2)


def print_table(
    out: Console, name: str, page: DeadLetterPage, *, limit: int, verbose: bool
) -> None:
    """Print the first ``limit`` dead letters of TaskQueue ``name`` as a table, oldest first."""
    if not page.total:
        out.print(f"{name} has no dead letters.")
        return
    shown = page.messages[:limit]
    out.print(_table(shown, verbose=verbose))
    more = page.total - len(shown)
    if more > 0:
        out.print(f"{more} more: raise --limit.")


def redrive_report(key: QueueKey, result: RedriveResult) -> list[str]:
    """Return lines that say how many messages were redriven, and why others were not."""
    lines = [f"{_count(result.redriven)} redriven to {result.exchange}, key {routing_key(*key)}."]
    if result.kept_tasks:
        lines.append(
            f"{_count(result.kept_tasks)} of Tasks kept: a Task continues or ends by its own retry "
            "policy; to run its work again, create the Task again."
        )
    if result.kept_outcomes:
        lines.append(f"{_count(result.kept_outcomes)} kept that are outcomes, not work.")
    if result.not_chosen:
        lines.append(f"{_count(result.not_chosen)} not chosen, kept.")
    if result.not_read:
        lines.append(f"{_count(result.not_read)} not read: run the command again.")
    for reason in list(dict.fromkeys(result.refused))[:_MAX_REFUSALS]:
        lines.append(f"not redriven, kept: {printable(reason)}")
    if result.refused:
        lines.append(f"{_count(len(result.refused))} could not be redriven.")
    lines += [f"no message has the id {printable(each)}." for each in result.not_found]
    return lines


def _count(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"


def _table(messages: Sequence[DeadLetter], *, verbose: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ["DIED", "ID", "HANDLER", "TASK", "CORRELATION ID", "BYTES", "REASON"]
    for name in (*names, "PAYLOAD") if verbose else names:
        table.add_column(name, overflow="fold", no_wrap=name == "DIED")
    for message in messages:
        cells = [
            _format_time(message.died) or "-",
            message.id or "-",
            message.handler or "(default)",
            message.task or message.kind.value,
            message.correlation_id or "-",
            str(message.size),
            message.reason or "-",
        ]
        if verbose:
            cells.append(_body_start(message))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _fields(message: DeadLetter, *, verbose: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": message.id,
        "kind": message.kind.value,
        "died": _format_time(message.died),
        "handler": message.handler,
        "task": message.task if message.kind is DeadLetterKind.TASK else None,
        "correlationId": message.correlation_id,
        "reason": message.reason,
        "size": message.size,
    }
    return {**fields, "payload": _body_start(message)} if verbose else fields


def _format_time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return to_rfc3339(seconds, "seconds")
    except (OverflowError, ValueError, OSError):  # a publisher may write any number
        return None


def _body_start(message: DeadLetter) -> str:
    text = message.body_start.decode(errors="replace")
    return f"{text}…" if message.size > len(message.body_start) else text
