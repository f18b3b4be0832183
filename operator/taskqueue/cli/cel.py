"""Evaluates the CEL rules of our CRDs: the part of the language that they use, and no more.

A rule is translated to an expression of Python. Rules come from our own models, never from a file
that is checked. Those about changes, with ``oldSelf``, say nothing of an object alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

_STRING = re.compile(r"""(r?'[^']*'|r?"[^"]*")""")
_OPERATORS = (
    (re.compile(r"&&"), " and "),
    (re.compile(r"\|\|"), " or "),
    (re.compile(r"!(?!=)"), " not "),
    (re.compile(r"\bhas\("), "has(lambda: "),
    (re.compile(r"\.(all|exists_one)\((\w+), *"), r".\1(lambda \2: "),
)


class Missing(AttributeError):
    """A rule asks for a field that is not there."""


class Fields:
    """An object as a rule sees it."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Any:
        if name not in self._value:
            raise Missing(name)
        return seen(self._value[name])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self._value == other._value

    __hash__ = None  # type: ignore[assignment]


class Items(list[Any]):
    """A list as a rule sees it."""

    def all(self, holds: Callable[[Any], bool]) -> bool:
        """Return whether it holds of all items."""
        return all(map(holds, self))

    def exists_one(self, holds: Callable[[Any], bool]) -> bool:
        """Return whether it holds of exactly one item."""
        return sum(map(bool, map(holds, self))) == 1


class Text(str):
    """A string as a rule sees it."""

    __slots__ = ()

    def contains(self, part: str) -> bool:
        """Return whether it has a part."""
        return part in self

    def startsWith(self, part: str) -> bool:
        """Return whether it begins with a part."""
        return self.startswith(part)

    def matches(self, pattern: str) -> bool:
        """Return whether a regular expression is found in it."""
        return re.search(pattern, self) is not None


def is_about_changes(rule: str) -> bool:
    """Return whether a rule compares an object with what it was."""
    return "oldSelf" in rule


def holds(rule: str, value: Any) -> bool:
    """Return whether a rule holds of a value; as the API server, not if it asks for what is absent.

    Raises:
        SyntaxError: it uses more of CEL than is known here.
    """
    names = {"self": seen(value), "has": _has, "size": len, "timestamp": datetime.fromisoformat}
    try:
        # Names as globals: a lambda within the expression sees no others.
        return bool(eval(_translated(rule), {"__builtins__": {}, **names}))  # noqa: S307 - see above
    except Missing:
        return False


def seen(value: Any) -> Any:
    """Return a value of JSON, or a time, as a rule sees it."""
    if isinstance(value, dict):
        return Fields(value)
    if isinstance(value, list):
        return Items(map(seen, value))
    return Text(value) if isinstance(value, str) else value


def _has(field: Callable[[], Any]) -> bool:
    try:
        field()
    except Missing:
        return False
    return True


def _translated(rule: str) -> str:
    parts = _STRING.split(rule)
    for place in range(0, len(parts), 2):
        for pattern, text in _OPERATORS:
            parts[place] = pattern.sub(text, parts[place])
    return "".join(parts).strip()
