"""Tokens: they prove that an outcome belongs to an attempt that the operator published.

A token is ``<key id>.<HMAC-SHA256 of uid, attempt and epoch>``. It is the same for every publish
of one attempt, can be checked by a leader that did not publish it, and cannot be made by anyone
without the key. Raising a Task's epoch invalidates every token issued before.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Bytes of the digest kept in a token: 128 bits, far beyond guessing within a Task's life.
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """Signs tokens with the current key, and verifies them with it and older ones.

    Attributes:
        current: id of the key that signs new tokens.
        keys: key id to secret bytes; ids have no dot.
    """

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if self.current not in self.keys:
            raise ValueError(f"token key {self.current!r} is not among the keys {list(self.keys)}")

    def sign(self, uid: str, attempt: int, epoch: int) -> str:
        """Return the token of one attempt of the Task with this uid."""
        return f"{self.current}.{self._digest(self.keys[self.current], uid, attempt, epoch)}"

    def verify(self, token: str, uid: str, attempt: int, epoch: int) -> bool:
        """Return whether ``token`` was made for this attempt with a key we know."""
        key_id, _, digest = token.partition(".")
        key = self.keys.get(key_id)
        if key is None:
            return False
        expected = self._digest(key, uid, attempt, epoch)
        return hmac.compare_digest(_encoded(digest), _encoded(expected))

    @staticmethod
    def _digest(key: bytes, uid: str, attempt: int, epoch: int) -> str:
        text = _encoded(f"{uid}\n{attempt}\n{epoch}")
        return hmac.digest(key, text, hashlib.sha256)[:_DIGEST_BYTES].hex()


def _encoded(text: str) -> bytes:
    """Return any text as bytes: what others claim may have lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def last_key_id(ids: Iterable[str]) -> str:
    """Return the id that sorts last; numbers in ids count as numbers, so k10 comes after k9.

    Raises:
        ValueError: there is none.
    """
    return max(ids, key=lambda one: (_parts(one), one))


def _parts(key_id: str) -> list[str | int]:
    """Split an id into text and numbers, in turns, so that ids can be compared part by part."""
    return [
        int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", key_id))
    ]
