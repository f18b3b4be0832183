"""The payloads of a batch's items, and their digest.

Kept as one text: 100,000 objects of their own would take a hundred times the memory.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Protocol

from taskqueue.exact_json import decode, encode
from taskqueue.limits import BATCH_ITEMS, INLINE_BYTES, PAYLOAD_BYTES

#: Lines checked in one turn of the loop: it has a Lease to renew.
_LINES_A_TURN = 500
_DIGEST_LENGTH = 16


class InvalidItemsError(ValueError):
    """Items that can never run; the text says which, why, and what to do."""


class Items(Protocol):
    """The payloads by index.

    Attributes:
        digest: the same for the same payloads; "": they follow from their number.
    """

    digest: str

    def __len__(self) -> int: ...

    def payload(self, index: int) -> bytes:
        """Return a JSON object in UTF-8."""


class CountedItems:
    """Items whose payload is their index."""

    digest = ""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def payload(self, index: int) -> bytes:
        """Return ``{"index": <index>}``."""
        return b'{"index":%d}' % index


class ListedItems:
    """Items with a payload each."""

    def __init__(self, payloads: Iterable[bytes]) -> None:
        text = bytearray()
        self._ends = array("I")
        for payload in payloads:
            text += payload
            self._ends.append(len(text))
        self._text = bytes(text)
        hashed = sha256(self._ends.tobytes() + self._text)
        self.digest = hashed.hexdigest()[:_DIGEST_LENGTH]

    def __len__(self) -> int:
        return len(self._ends)

    def payload(self, index: int) -> bytes:
        """Return the payload as it was given."""
        return self._text[self._ends[index - 1] if index else 0 : self._ends[index]]


def inline_items(objects: Iterable[dict[str, Any]]) -> ListedItems:
    """Return the items of spec.items.

    Raises:
        InvalidItemsError: they are too large, or one cannot be passed on as it is.
    """
    payloads = []
    for number, item in enumerate(objects):
        try:
            payloads.append(encode(item, f"spec.items[{number}]"))
        except ValueError as error:
            raise InvalidItemsError(f"{error}; then create the TaskBatch again") from None
    size = sum(map(len, payloads))
    if size > INLINE_BYTES:
        raise InvalidItemsError(
            f"spec.items has {size} bytes, the limit is {INLINE_BYTES}: put the items into a "
            "ConfigMap, name it in spec.itemsFrom, and create the TaskBatch again"
        )
    return ListedItems(payloads)


async def items_of_lines(text: str, where: str) -> ListedItems:
    """Return the items of JSON lines; empty lines are left out.

    Args:
        text: of the lines.
        where: it comes from, for errors.

    Raises:
        InvalidItemsError: a line is no JSON object, or there is too much.
    """
    payloads: list[bytes] = []
    for number, line in enumerate(text.split("\n"), 1):
        if number % _LINES_A_TURN == 0:
            await asyncio.sleep(0)
        stripped = line.strip()
        if not stripped:
            continue
        if len(payloads) == BATCH_ITEMS:
            raise InvalidItemsError(
                f"{where} has more than {BATCH_ITEMS} lines: make several TaskBatches of them"
            )
        payloads.append(_checked(stripped, f"{where}, line {number}"))
    return ListedItems(payloads)


def _checked(line: str, where: str) -> bytes:
    try:
        found = decode(line)
    except ValueError as error:
        raise InvalidItemsError(
            f"{where} is not valid JSON ({error}): correct it, and create the TaskBatch again"
        ) from None
    if not isinstance(found, dict):
        raise InvalidItemsError(
            f"{where} is not a JSON object: write {{...}}, and create the TaskBatch again"
        )
    data = line.encode()
    if len(data) > PAYLOAD_BYTES:
        raise InvalidItemsError(
            f"{where} has {len(data)} bytes, the limit is {PAYLOAD_BYTES}: keep the data "
            "elsewhere, put a reference to it there, and create the TaskBatch again"
        )
    return data
