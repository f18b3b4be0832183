"""What was broken once, as rows of a table: each makes it happen from outside, and looks.

A row is a function of a `Site`. It returns what was seen, or fails with it (`AssertionError`): red.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.rows.site import Site

Try = Callable[[Site], str]


@dataclass(frozen=True)
class Row:
    """One thing that was broken.

    Attributes:
        name: of the row: its section and a number.
        input: what is done.
        expected: what is right.
        attempt: does it.
        alone: whether it disturbs rows that run at the same time.
    """

    name: str
    input: str
    expected: str
    attempt: Try
    alone: bool = False


#: By name.
ROWS: dict[str, Row] = {}


def row(name: str, input: str, expected: str, *, alone: bool = False) -> Callable[[Try], Try]:
    """Add a function to the table."""

    def add(attempt: Try) -> Try:
        ROWS[name] = Row(name, input, expected, attempt, alone)
        return attempt

    return add
