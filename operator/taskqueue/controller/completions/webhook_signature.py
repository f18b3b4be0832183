"""Signs webhooks as Standard Webhooks 1.0 says: HMAC with SHA-256, header by header. Pure.

A receiver takes a request for genuine when one of its signatures is made with a secret it knows. So
with two secrets each request has two signatures, and a receiver may change from the one to the
other whenever it likes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_PREFIX = "whsec_"
#: Of a secret, in bytes, and secrets at once.
_SHORTEST, _LONGEST = 24, 64
_SECRETS = 2
#: Ids that a header takes as they are.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class SigningSecretInvalid(ValueError):
    """What is to be a signing secret is none; the text does not quote it."""


@dataclass(frozen=True, slots=True)
class SigningSecrets:
    """The secrets that each request is signed with, one or two."""

    keys: Sequence[bytes] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> SigningSecrets:
        """Read secrets that are separated by white space, each ``whsec_`` and base64.

        Raises:
            SigningSecretInvalid: with what to do about it.
        """
        words = text.split()
        if not 1 <= len(words) <= _SECRETS:
            raise SigningSecretInvalid(
                f"it has {len(words)} signing secrets: give one, or two while they are exchanged"
            )
        return cls(tuple(map(_key, words)))

    def sign(self, message_id: str, timestamp: int, body: bytes) -> str:
        """Return the header ``webhook-signature``.

        Args:
            message_id: of the header ``webhook-id``.
            timestamp: of the header ``webhook-timestamp``, in seconds since the epoch.
            body: of the request.
        """
        signed = f"{message_id}.{timestamp}.".encode() + body
        digests = (hmac.digest(key, signed, hashlib.sha256) for key in self.keys)
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def webhook_id(event_id: str) -> str:
    """Return the header ``webhook-id`` of an event: its own id, unless no header can have that.

    The same event always has the same. Workers choose the ids of direct messages.
    """
    if _PLAIN_ID.fullmatch(event_id):
        return event_id
    return f"sha256-{hashlib.sha256(event_id.encode(errors='surrogatepass')).hexdigest()}"


def _key(word: str) -> bytes:
    try:
        key = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise SigningSecretInvalid(
            f"a signing secret is {_PREFIX} and base64: make one with "
            f'"{_PREFIX}$(openssl rand -base64 32)"'
        ) from None
    if not _SHORTEST <= len(key) <= _LONGEST:
        raise SigningSecretInvalid(
            f"a signing secret has {len(key)} bytes: use {_SHORTEST} to {_LONGEST} random bytes, "
            f'such as "{_PREFIX}$(openssl rand -base64 32)"'
        )
    return key
