"""Records: values that nobody changes, which cost little to make. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a class a dataclass with slots, which mypy keeps anybody from changing.

    Python itself does not: a frozen dataclass takes several times as long to make, and a worker
    makes a dozen such values for each message. See docs/decisions/0019-runs-are-values.md.
    """
    return dataclass(slots=True)(cls)
