"""Results that are not JSON. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from taskqueue.limits import MEDIA_TYPE_LENGTH, MEDIA_TYPE_PATTERN

#: What to do about a result that no status takes.
NEEDS_STORE = (
    "give the TaskQueue a store for them (spec.results.store), or store it elsewhere and return "
    "where it is"
)

#: What bytes are without a content type.
OCTET_STREAM = "application/octet-stream"

_MEDIA_TYPE = re.compile(MEDIA_TYPE_PATTERN)


@dataclass(frozen=True, slots=True)
class BinaryResult:
    """A result that is bytes: a picture, a document, a table.

    A handler returns it, or plain ``bytes``, which stand for one of OCTET_STREAM. It needs a
    TaskQueue with a store (spec.results.store). Clients return it as it was.

    Attributes:
        body: the bytes, at most 32 MiB.
        content_type: a media type of at most 255 characters.

    Raises:
        TypeError: the body is not bytes.
        ValueError: the content type is no media type.
    """

    body: bytes = field(repr=False)
    content_type: str = OCTET_STREAM

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            raise TypeError(f"BinaryResult(body): bytes, not {type(self.body).__name__}")
        if not is_media_type(self.content_type):
            raise ValueError(
                f"BinaryResult(content_type): {self.content_type!r} is no media type: give one "
                "such as image/png"
            )


def is_media_type(text: Any) -> bool:
    """Return whether a value is a media type that can be kept with a result."""
    return (
        isinstance(text, str)
        and len(text) <= MEDIA_TYPE_LENGTH
        and _MEDIA_TYPE.fullmatch(text) is not None
    )


def binary_of(value: Any) -> BinaryResult | None:
    """Return what a handler returned if it is bytes of any kind; None: it is something else.

    The value may be of a handler's own class, so this may raise anything.
    """
    kind = type(value)
    if issubclass(kind, BinaryResult):
        return BinaryResult(value.body, value.content_type)
    if issubclass(kind, (bytes, bytearray, memoryview)):
        return BinaryResult(bytes(value))
    return None
