"""Payloads in memory, by uid: at most a number of bytes, whatever there are of Tasks.

Tasks are mostly dispatched by age, so what has waited longest is kept: a payload that comes when
the cache is full is not. What is about to be dispatched takes the room of what was dispatched,
which only a retry needs again, and then of what came last.
"""

from __future__ import annotations

from collections import OrderedDict

#: What an entry costs beside the payload.
_ENTRY_BYTES = 200


class PayloadCache:
    """Keeps payloads of at most ``budget`` bytes; see the module.

    Args:
        budget: bytes, with what each entry costs beside its payload.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        #: Of Tasks that have not had their turn, in order of arrival.
        self._waiting: dict[str, bytes] = {}
        #: Of those that had it, or are about to; the last one is needed first.
        self._drawn: OrderedDict[str, bytes] = OrderedDict()
        #: In use, entries included.
        self.bytes = 0

    def __contains__(self, uid: str) -> bool:
        """Return whether the payload is here."""
        return uid in self._waiting or uid in self._drawn

    def get(self, uid: str) -> bytes | None:
        """Return a payload; None: it is not here."""
        payload = self._waiting.get(uid)
        return self._drawn.get(uid) if payload is None else payload

    def offer(self, uid: str, payload: bytes) -> None:
        """Keep the payload of a Task that waits, unless others that wait need the room."""
        self.discard(uid)
        if self._make_room(len(payload), for_next=False):
            self._waiting[uid] = payload
            self.bytes += len(payload) + _ENTRY_BYTES

    def put(self, uid: str, payload: bytes) -> None:
        """Keep the payload of a Task that has its turn, alone if it is above the budget."""
        self.discard(uid)
        self._make_room(len(payload), for_next=True)
        self._drawn[uid] = payload
        self.bytes += len(payload) + _ENTRY_BYTES

    def mark_published(self, uid: str) -> None:
        """Take note that a payload is needed for a retry only."""
        payload = self._waiting.pop(uid, None)
        if payload is not None:
            self._drawn[uid] = payload

    def discard(self, uid: str) -> None:
        """Keep a payload no more."""
        payload = self._waiting.pop(uid, None)
        if payload is None:
            payload = self._drawn.pop(uid, None)
        if payload is not None:
            self.bytes -= len(payload) + _ENTRY_BYTES

    def _make_room(self, size: int, *, for_next: bool) -> bool:
        """Drop what is needed least until the size fits; return whether it does."""
        most = self._budget - size - _ENTRY_BYTES
        if most < 0 and not for_next:
            return False
        while self.bytes > most and self._drawn:
            self.discard(next(iter(self._drawn)))
        while self.bytes > most and self._waiting and for_next:
            self.discard(next(reversed(self._waiting)))
        return self.bytes <= most
