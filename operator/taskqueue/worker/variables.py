"""Declares the environment variables that a worker's settings are read from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: No number is larger than this, where nothing smaller is declared.
_HIGHEST = 1_000_000


class SettingsError(ValueError):
    """A variable is missing or wrong; the text names it and says what it should be."""


@dataclass(frozen=True, slots=True)
class Variable:
    """Declares one environment variable.

    Attributes:
        name: of the variable.
        meaning: one line of Markdown.
        parse: returns the value of a text; raises ValueError with what to give instead.
        default: in words, where the value does not say enough.
        unit: of a number, such as ``s``.
    """

    name: str
    meaning: str
    parse: Callable[[str], Any] = str
    default: str = ""
    unit: str = ""

    def read(self, text: str) -> Any:
        """Return the value of a text.

        Raises:
            SettingsError: it is not accepted.
        """
        try:
            return self.parse(text)
        except ValueError as error:
            raise SettingsError(f"{self.name} is {text!r}: {error}") from None


def read_from(*variables: Variable) -> dict[str, tuple[Variable, ...]]:
    """Return the metadata of a field that is read from these variables."""
    return {"variables": variables}


def integer(lowest: int = 0, highest: int = _HIGHEST) -> Callable[[str], int]:
    """Return a parser of whole numbers between two bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise ValueError(f"give a whole number from {lowest} to {highest}")
        return value

    return parse


def number(lowest: float = 0.0, highest: float = _HIGHEST) -> Callable[[str], float]:
    """Return a parser of numbers between two bounds."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest:
            raise ValueError(f"give a number from {lowest:g} to {highest:.0f}")
        return value

    return parse
