"""Defines which Python values are JSON, exactly: the one place for payloads, results and progress.

A value is JSON if every program reads the same value back: integers of 64 bits with sign, finite
floating-point numbers, text that is Unicode, objects whose keys are strings, and no more than
`JSON_DEPTH` levels of objects and lists. Models and dataclasses are objects, times are ISO 8601.
Anything else is refused with its place, such as ``result.items[3].loss``: a number that is stored
as another one is worse than a failure. A `decimal.Decimal` is refused too: most of them are no
floating-point number, and which are depends on their value.

Use `plain` where only the standard library may be imported. `taskqueue.exact_json` encodes and
decodes the same values with orjson, faster.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import sys
import uuid
from typing import Any

from taskqueue.limits import JSON_DEPTH

#: Integers from here on, and below the negative of it, have more than 64 bits with their sign.
INTEGER_END = 2**63

#: Characters of a place, and of one key in it.
_PLACE_LENGTH = 200
_KEY_LENGTH = 60


class NotJsonError(TypeError, ValueError):
    """A value, or a part of one, that is not JSON.

    Attributes:
        problem: what is wrong, and what to do.
        place: where, such as ``payload.items[3].loss``.
    """

    def __init__(self, problem: str, *, at: str = "") -> None:
        self.problem = problem
        self._keys: list[str | int] = []
        self._root = at
        super().__init__(problem)

    def __str__(self) -> str:
        place = self.place
        return f"{place}: {self.problem}" if place else self.problem

    @property
    def place(self) -> str:
        """See the class."""
        place = self._root + "".join(map(_step, reversed(self._keys)))
        place = place.removeprefix(".")
        return place if len(place) <= _PLACE_LENGTH else place[: _PLACE_LENGTH - 1] + "…"

    def within(self, key: str | int) -> None:
        """Add the key, or the index, that leads to the place so far."""
        self._keys.append(key)

    def below(self, root: str) -> None:
        """Set the name of the whole value, such as ``payload``."""
        self._root = root


def plain(value: Any, at: str = "", *, depth: int = JSON_DEPTH) -> Any:
    """Return a copy made of dicts, lists, strings, numbers, booleans and None.

    Args:
        value: any value.
        at: the name of the value in an error's place, such as ``payload``.
        depth: levels of objects and lists it may have.

    Raises:
        NotJsonError: it is not JSON.
    """
    try:
        return _plain(value, depth)
    except NotJsonError as error:
        error.below(at)
        raise
    except Exception as problem:  # of a property, or of a value that changes meanwhile
        reason = f"it cannot be read: {type(problem).__name__}: {problem}"
        raise NotJsonError(reason, at=at) from problem


def _model(value: Any) -> Any:
    """Return a pydantic model as plain values.

    Raises:
        NotJsonError: it is not a model.
    """
    pydantic = sys.modules.get("pydantic")  # not imported: there can be no model
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise NotJsonError(
        f"{type(value).__name__} is not JSON: use a dict, a pydantic model, a dataclass, a list, "
        "a string, a number, a boolean or None"
    )


def _plain(value: Any, levels: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, levels)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJsonError(f"{value} is not a JSON number: use None, or text")
        return float.__pos__(value)  # of a subclass, such as NumPy's, the number alone
    if isinstance(value, dict):
        return _object(value, levels)
    if isinstance(value, list) or type(value) is tuple:
        return _list(value, levels)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return _object(
            {name: getattr(value, name) for name in fields if not name.startswith("_")}, levels
        )
    if isinstance(value, decimal.Decimal):
        raise NotJsonError("a Decimal is not JSON: use str(…), or float(…) where that is enough")
    return _plain(_model(value), levels)


def _object(value: dict[Any, Any], levels: int) -> dict[str, Any]:
    _check_levels(levels)
    copy: dict[str, Any] = {}
    key: Any = ""
    try:
        for key, item in list(value.items()):  # reading an item may change it
            if not isinstance(key, str):
                raise NotJsonError(
                    f"the keys of an object are strings, not {type(key).__name__}: use str(…)"
                )
            copy[_text(key)] = _plain(item, levels - 1)
    except NotJsonError as error:
        error.within(_short(key))
        raise
    return copy


def _list(value: list[Any] | tuple[Any, ...], levels: int) -> list[Any]:
    _check_levels(levels)
    copy: list[Any] = []
    try:
        for item in list(value):  # reading an item may change it
            copy.append(_plain(item, levels - 1))
    except NotJsonError as error:
        error.within(len(copy))
        raise
    return copy


def _check_levels(left: int) -> None:
    if left <= 0:
        raise NotJsonError("nested too deep, or within itself: flatten it")


def _integer(value: int) -> int:
    number = int.__pos__(value)  # of a subclass the number alone
    if -INTEGER_END <= number < INTEGER_END:
        return number
    raise NotJsonError(
        "an integer of more than 64 bits with its sign: use text, or a floating-point number"
    )


def _text(value: str) -> str:
    try:
        str.encode(value)  # not of a subclass
    except UnicodeEncodeError as error:
        raise NotJsonError(f"a string is not Unicode text: {error.reason}") from error
    return str.__str__(value)


def _short(key: Any) -> str:
    text = key if isinstance(key, str) else repr(key)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _KEY_LENGTH else text[: _KEY_LENGTH - 1] + "…"


def _step(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if key.isidentifier() else f"[{key!r}]"
