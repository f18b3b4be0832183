"""Text within a limit in bytes."""

from __future__ import annotations

_ELLIPSIS = "…"


def cut(text: str, limit: int) -> str:
    """Return text that has no more bytes of UTF-8 than ``limit``, cut after a whole character.

    What was cut ends with an ellipsis; a lone surrogate, which UTF-8 cannot encode, is replaced.
    """
    encoded = text[: limit + 1].encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    room = limit - len(_ELLIPSIS.encode())
    return encoded[:room].decode("utf-8", "ignore") + _ELLIPSIS
