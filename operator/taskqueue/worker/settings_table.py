"""The table of a worker's settings: for ``--help``, and in Markdown for docs/workers.md.

``python -m taskqueue.worker.settings_table`` writes it into docs/workers.md, between two comments.
"""

from __future__ import annotations

import textwrap
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from taskqueue.worker.settings import WorkerSettings, is_required, variables_of
from taskqueue.worker.variables import Variable

#: The table in docs/workers.md stands between these lines.
BEGIN = "<!-- Settings: written by `make settings` from taskqueue/worker/settings.py. -->"
END = "<!-- End of the settings. -->"

#: Not a setting, but in the table: Python's ``tempfile`` reads it.
_TMPDIR = Variable(
    "TMPDIR",
    "where commands find the payload and leave the result of an attempt; must be writable",
    default="`/tmp`",
)


def rows() -> list[tuple[str, str, str]]:
    """Return name, meaning and default of each variable; the last two are Markdown."""
    settings = [
        (variable.name, variable.meaning, _default(each, variable))
        for each in fields(WorkerSettings)
        for variable in variables_of(each)
    ]
    return [*settings, (_TMPDIR.name, _TMPDIR.meaning, _TMPDIR.default)]


def help_text() -> str:
    """Return the table for a terminal, 96 columns wide."""
    lines = []
    for name, meaning, default in rows():
        text = f"{meaning} [{default}]" if default else meaning
        first, *more = textwrap.wrap(text.replace("`", ""), 58)
        lines += [f"  {name:35} {first}", *(f"{'':38}{line}" for line in more)]
    return "\n".join(lines)


def markdown() -> str:
    """Return the table in Markdown."""
    lines = ["| variable | meaning | default |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {meaning} | {default} |".replace("  ", " ")
        for name, meaning, default in rows()
    ]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """Return a page of the documentation with the table as it should be.

    Raises:
        ValueError: the page lacks the comments around the table.
    """
    before, begin, rest = page.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}: put them around the table")
    return f"{before}{begin}{markdown()}{end}{after}"


def _default(setting: Field[Any], variable: Variable) -> str:
    if setting.name != "broker" and is_required(setting):
        return "required"
    value = setting.default
    if isinstance(value, int | float):
        number = f"{value:g}" + (f" {variable.unit}" if variable.unit else "")
        return f"{number}: {variable.default}" if variable.default else number
    return variable.default or (f"`{value}`" if isinstance(value, str) else "")


if __name__ == "__main__":
    path = Path("docs/workers.md")
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
