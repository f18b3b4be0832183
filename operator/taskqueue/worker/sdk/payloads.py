"""Typed payloads: from the JSON object of a message to the model a handler asks for.

A handler asks by the annotation of its first parameter: a pydantic model or a dataclass, or a union
of such. With any other annotation the handler gets the dict. pydantic checks the models, in JSON
mode: a payload may hold what the model's JSON schema allows. pydantic is imported when such a
handler is prepared, never before.
"""

from __future__ import annotations

import builtins
import collections.abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from taskqueue.worker.sdk.failures import InvalidPayload

#: A bad payload's error names this many fields, each with this many characters of text.
_FIELDS_NAMED = 8
_FIELD_LENGTH = 100

#: Names that annotations may use although the module has not imported them at run time: imports for
#: type checkers are often under ``TYPE_CHECKING``.
_WELL_KNOWN = {**vars(collections.abc), **vars(typing)}


def parser_for(name: str, function: Callable[..., Any]) -> PayloadParser | None:
    """Return the parser of a handler's payload, or None for a handler that gets the dict.

    An annotation that cannot be resolved yet, such as the name of a class that is defined further
    down, is resolved when the handler is prepared.
    """
    parameters = iter(inspect.signature(function).parameters.values())
    annotation = next(parameters).annotation
    if isinstance(annotation, str):
        try:
            annotation = _resolved(annotation, function)
        except Exception:
            return PayloadParser(name, function, annotation)
    return PayloadParser(name, function, annotation) if _is_typed(annotation) else None


class PayloadParser:
    """Parses the payloads of one handler; `prepare` creates pydantic's adapter once."""

    __slots__ = ("_annotation", "_function", "_name", "_validate")

    def __init__(self, name: str, function: Callable[..., Any], annotation: Any) -> None:
        self._name = name
        self._function = function
        self._annotation = annotation
        self._validate: Callable[[dict[str, Any]], Any] | None = None

    def prepare(self) -> None:
        """Resolve the annotation and create the adapter.

        Raises:
            TypeError: the annotation cannot be resolved, or pydantic cannot check it.
        """
        if self._validate is None:
            self._validate = self._validator()

    def __call__(self, payload: dict[str, Any]) -> Any:
        """Return the model of a payload.

        Raises:
            InvalidPayload: with the fields at fault.
            TypeError: as `prepare`.
        """
        if self._validate is None:
            self._validate = self._validator()
        return self._validate(payload)

    def _validator(self) -> Callable[[dict[str, Any]], Any]:
        annotation = self._annotation
        if isinstance(annotation, str):
            try:
                annotation = _resolved(annotation, self._function)
            except Exception as error:
                raise TypeError(
                    f"handler {self._name!r}: the annotation {annotation!r} of its payload cannot "
                    f"be resolved ({error}): import it at run time, not under TYPE_CHECKING, "
                    "define it at the top of a module, or leave the annotation out"
                ) from error
        if not _is_typed(annotation):
            return lambda payload: payload
        import pydantic
        import pydantic_core

        try:
            adapter = pydantic.TypeAdapter(annotation)
            adapter.rebuild(raise_errors=True)
        except pydantic.errors.PydanticUserError as error:
            raise TypeError(
                f"handler {self._name!r}: its payload cannot be checked as "
                f"{_shown(annotation)}: {error.message}"
            ) from error

        def validate(payload: dict[str, Any]) -> Any:
            try:
                return adapter.validate_json(pydantic_core.to_json(payload))
            except pydantic.ValidationError as error:
                errors = error.errors(include_url=False, include_context=False, include_input=False)
                found = [(".".join(map(str, one["loc"])), one["msg"]) for one in errors]
            except ValueError as error:
                # Text that is not valid Unicode, or objects nested deeper than pydantic allows.
                found = [("", str(error))]
            raise InvalidPayload(
                f"the payload is not what handler {self._name!r} takes: {_error_text(found)}",
                fields=[place for place, _ in found[:_FIELDS_NAMED]],
            )

        return validate


def _resolved(annotation: str, function: Callable[..., Any]) -> Any:
    """Evaluate a string annotation where the function was defined; any exception may come."""
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    function = inspect.unwrap(function)
    module = sys.modules.get(getattr(function, "__module__", ""), builtins)
    names = getattr(function, "__globals__", vars(module))
    # The author's own code, as typing.get_type_hints evaluates it.
    known = {**_WELL_KNOWN, **names}
    found = eval(annotation, known)  # noqa: S307
    # Quoted in a module whose annotations are texts anyway.
    return eval(found, known) if isinstance(found, str) else found  # noqa: S307


def _is_typed(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _is_typed(typing.get_args(annotation)[0])
    if origin is typing.Union or isinstance(annotation, types.UnionType):
        return any(map(_is_typed, typing.get_args(annotation)))
    kind = origin or annotation
    if not isinstance(kind, type):
        return False
    pydantic = sys.modules.get("pydantic")  # absent: nobody can have made a model
    return dataclasses.is_dataclass(kind) or (
        pydantic is not None and issubclass(kind, pydantic.BaseModel)
    )


def _error_text(found: Sequence[tuple[str, str]]) -> str:
    named = [
        f"{_short(place)}: {_short(text)}" if place else _short(text)
        for place, text in found[:_FIELDS_NAMED]
    ]
    if len(found) > _FIELDS_NAMED:
        named.append(f"and {len(found) - _FIELDS_NAMED} more")
    return "; ".join(named)


def _short(text: str) -> str:
    return text if len(text) <= _FIELD_LENGTH else text[: _FIELD_LENGTH - 1] + "…"


def _shown(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
