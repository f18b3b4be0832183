"""What a benchmark prints: tables while it runs, one line of JSON at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.machine import NOISY
from tests.bench.statistics import Spread, significant

#: Wide enough for the tables where the output is no terminal.
_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark found.

    Attributes:
        bench: its name.
        figures: ours, and our peers'.
        ratios: ours divided by a peer's, measured in the same run.
        spread: of the figures that were measured more than once.
        details: anything else that helps to read them.
    """

    bench: str
    figures: Mapping[str, float]
    ratios: Mapping[str, float]
    spread: Mapping[str, Spread] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the last line of the output: one JSON object."""
        return json.dumps(
            {
                "bench": self.bench,
                "figures": {name: significant(value) for name, value in self.figures.items()},
                "ratios": {name: significant(value) for name, value in self.ratios.items()},
                "spread": {name: spread.as_dict() for name, spread in self.spread.items()},
                **self.details,
            }
        )


class Report:
    """Writes to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = _WIDTH

    def say(self, text: str) -> None:
        """Print what happens now."""
        self._console.print(text, markup=False)

    def machine(self, facts: Mapping[str, Any]) -> None:
        """Print the machine, and whether it is quiet enough."""
        self.say("machine: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        busy = facts.get("busy_before")
        if isinstance(busy, float) and busy > NOISY:
            self.say(f"NOTE: other programs keep the machine {busy:.0%} busy: results are noisy")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table: words left, numbers right."""
        table = Table(title=title, title_justify="left")
        table.add_column(columns[0])
        for column in columns[1:]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self._console.print(table)

    def spreads(self, title: str, spreads: Mapping[str, Spread]) -> None:
        """Print minimum, median and maximum of each."""
        self.table(
            title,
            ["", "min", "median", "max", "n"],
            [(name, s.low, s.middle, s.high, s.count) for name, s in spreads.items()],
        )

    def end(self, outcome: Outcome) -> None:
        """Print the ratios, then the line for programs; nothing may be printed after it."""
        self.table("ratios", ["", "ours / theirs"], outcome.ratios.items())
        print(outcome.line(), flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        shown = significant(value)
        return f"{shown:g}" if abs(shown) < 1e6 else f"{shown:.0f}"
    return str(value)
