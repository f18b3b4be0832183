"""Checks an object against the schema of its CRD, as the API server does when it is created.

Defaults are set first. Fields that the schema does not have are refused: the API server drops them
with a warning, which is how a misspelt one is lost.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from taskqueue.cli import cel

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_UNKNOWN_KEPT = "x-kubernetes-preserve-unknown-fields"


def problems(value: Any, schema: Schema, place: str = "") -> list[str]:
    """Return what is wrong with a value: the place, what, and what to do where a rule says so.

    A rule is asked about what has the right form only: it may rely on that.
    """
    found = list(_of_form(value, schema, place))
    return found or list(_of_rules(value, schema, place))


def _of_form(value: Any, schema: Schema, place: str) -> Iterator[str]:
    kind = schema.get("type", "")
    is_bool = isinstance(value, bool) and kind in ("integer", "number")
    if kind and (not isinstance(value, _TYPES[kind]) or is_bool):
        yield f"{place}: is {_named(value)}, and must be of type {kind}"
        return
    yield from _bounds(value, schema, place)
    if isinstance(value, dict):
        yield from _fields(value, schema, place)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), f"{place}[{number}]")
        if schema.get("x-kubernetes-list-type") == "set" and _has_twice(value):
            yield f"{place}: an item stands there twice: name each once"


def _of_rules(value: Any, schema: Schema, place: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if not cel.is_about_changes(rule["rule"]) and not cel.holds(
            rule["rule"], _with_times(value, schema)
        ):
            yield f"{place}{rule.get('fieldPath', '')}: {rule['message']}"


def with_defaults(value: Any, schema: Schema) -> Any:
    """Return a value with the defaults of its schema."""
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known: dict[str, Schema] = schema.get("properties", {})
    absent = {
        name: copy.deepcopy(one["default"])
        for name, one in known.items()
        if "default" in one and name not in value
    }
    return {
        name: with_defaults(one, known.get(name, {})) for name, one in {**value, **absent}.items()
    }


def _fields(value: Schema, schema: Schema, place: str) -> Iterator[str]:
    known: dict[str, Schema] = schema.get("properties", {})
    others = schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{_in(place, name)}: is missing, and required"
    for name, one in value.items():
        if name in known:
            yield from problems(one, known[name], _in(place, name))
        elif others:
            yield from problems(one, others if isinstance(others, dict) else {}, _in(place, name))
        elif known and not schema.get(_UNKNOWN_KEPT):
            near = difflib.get_close_matches(name, known, 1)
            advice = f": did you mean {near[0]}?" if near else ": remove it"
            yield f"{_in(place, name)}: there is no such field{advice}"


def _bounds(value: Any, schema: Schema, place: str) -> Iterator[str]:
    allowed = schema.get("enum")
    if allowed is not None and value not in allowed:
        yield f"{place}: is {value!r}, and must be one of {', '.join(map(str, allowed))}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            yield f"{place}: is {value}, and must be at least {schema['minimum']}"
        if value > schema.get("maximum", value):
            yield f"{place}: is {value}, and must be at most {schema['maximum']}"
    for kinds, low, high, what in (
        (str, "minLength", "maxLength", "characters"),
        (list, "minItems", "maxItems", "items"),
        (dict, "minProperties", "maxProperties", "fields"),
    ):
        if isinstance(value, kinds):
            if len(value) < schema.get(low, 0):
                yield f"{place}: has {len(value)} {what}, and must have at least {schema[low]}"
            if len(value) > schema.get(high, len(value)):
                yield f"{place}: has {len(value)} {what}, and may have at most {schema[high]}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{place}: {value!r} does not match {schema['pattern']}"
        elif schema.get("format") == "date-time" and _time(value) is None:
            yield f"{place}: {value!r} is no time: write one such as 2026-01-02T03:04:05Z"


def _with_times(value: Any, schema: Schema) -> Any:
    """Return a value in which texts of format date-time are times, for rules to compare."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {name: _with_times(one, known.get(name, {})) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_times(item, schema.get("items", {})) for item in value]
    if isinstance(value, str) and schema.get("format") == "date-time":
        return _time(value) or value
    return value


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def _has_twice(items: list[Any]) -> bool:
    return any(item in items[:place] for place, item in enumerate(items))


def _in(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _named(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
