"""Converts Python values to JSON values: models and dataclasses to objects, times to ISO 8601.

Use `plain` where only the standard library may be imported, or where an error must come before
anything is sent; the worker encodes with orjson and `models`, faster and with the same result.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import sys
import uuid
from typing import Any

#: As deep as orjson goes.
_DEPTH = 254


def plain(value: Any) -> Any:
    """Return a copy made of dicts, lists, strings, numbers, booleans and None.

    Raises:
        TypeError: JSON has no such value; the text names the type at fault.
    """
    return _plain(value, _DEPTH)


def models(value: Any) -> Any:
    """Return a pydantic model as plain values; a ``default`` for orjson.

    Raises:
        TypeError: it is not a model.
    """
    pydantic = sys.modules.get("pydantic")  # not imported: there can be no model
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _plain(value: Any, depth: int) -> Any:
    if depth == 0:
        raise TypeError(f"nested deeper than {_DEPTH} levels, or within itself")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth - 1)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise TypeError(f"integer {str(value)[:20]}… has more than 64 bits")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the keys of an object are strings, not {type(key).__name__}")
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), depth - 1)
            for field in dataclasses.fields(value)
            if not field.name.startswith("_")
        }
    return models(value)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"a string is not Unicode text: {error.reason}") from error
    return value
