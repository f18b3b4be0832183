"""Plain tables and times, as kubectl prints them. Only printable characters reach a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: columns are as wide as their widest cell."""
    cells = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def span(seconds: float) -> str:
    """Return a duration for people, in at most two units: 45s, 3m20s, 5h12m, 4d3h."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    for size, unit, part, below in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size}{unit}{rest}{below}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def printable(text: str) -> str:
    """Return a text without characters that do something to a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
