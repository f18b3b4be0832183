"""Colours, where they are wanted: on a terminal, unless NO_COLOR is set or TERM is dumb."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}

#: The colour of a Task's phase; others have none.
PHASE_COLOURS = {
    "Succeeded": "green",
    "Failed": "red",
    "Cancelled": "yellow",
    "Retrying": "yellow",
    "Blocked": "yellow",
    "Running": "cyan",
}


def has_colour(out: TextIO) -> bool:
    """Return whether an output shows colours: see https://no-color.org."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, wanted: bool) -> str:
    """Return a text in a colour, if it is ``wanted`` and one is known."""
    code = _CODES.get(colour)
    return f"\033[{code}m{text}\033[0m" if wanted and code and text else text
