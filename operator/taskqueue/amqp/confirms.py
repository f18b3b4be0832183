"""Tracks unconfirmed publishes: the map behind publisher confirms, without any I/O.

Confirms arrive in any order, one by one or for all tags up to one (``multiple``). A return (the
message reached no queue) arrives before the confirm of the same message and has no tag: it is
matched by message id, which therefore must be unique among the unconfirmed publishes. Whatever
arrives, in whichever order, every publish is settled exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Settled(StrEnum):
    """How a publish ended."""

    #: In the queue, on disk if the queue's type says so.
    CONFIRMED = "Confirmed"
    #: No queue is bound to the key: the broker dropped the message.
    RETURNED = "Returned"
    #: Refused by a full queue, or the channel has closed: it may have arrived; publish it again.
    UNKNOWN = "Unknown"


OnSettled = Callable[[Settled, str], None]

_NACKED = "the broker refused the message: its queue is full or failing"


class UnconfirmedPublishes:
    """Tracks the unconfirmed publishes of one channel, by delivery tag."""

    __slots__ = ("_entries", "_last", "_oldest", "_on_error", "_returned")

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        """``on_error`` is called with the exception of a callback: others must still be called."""
        self._on_error = on_error
        self._entries: dict[int, tuple[str, OnSettled]] = {}
        self._returned: dict[str, str] = {}
        self._last = 0
        #: No entry has a tag below this one, so that `multiple` visits each tag only once.
        self._oldest = 1

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, message_id: str, on_settled: OnSettled) -> int:
        """Add the next publish and return its tag."""
        self._last += 1
        self._entries[self._last] = (message_id, on_settled)
        return self._last

    def on_return(self, message_id: str | None, reason: str) -> None:
        """Record that the broker returned a message; its confirm follows."""
        self._returned[message_id or ""] = reason

    def on_confirm(self, tag: int, *, multiple: bool, acked: bool) -> None:
        """Settle one publish, or all up to a tag (0: all of them); unknown tags are ignored."""
        if not multiple:
            entry = self._entries.pop(tag, None)
            if entry is not None:
                self._settle_entry(entry, acked)
            return
        last = min(tag, self._last) if tag else self._last
        first, self._oldest = self._oldest, max(self._oldest, last + 1)
        # Callbacks may publish: their tags are above `last`.
        for one in range(first, last + 1):
            entry = self._entries.pop(one, None)
            if entry is not None:
                self._settle_entry(entry, acked)

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown: no more confirms will arrive."""
        entries, self._entries = self._entries, {}
        for _, on_settled in entries.values():
            self._call(on_settled, Settled.UNKNOWN, reason)

    def _settle_entry(self, entry: tuple[str, OnSettled], acked: bool) -> None:
        message_id, on_settled = entry
        reason = self._returned.pop(message_id, None) if self._returned else None
        if reason is not None:
            self._call(on_settled, Settled.RETURNED, reason)
        elif acked:
            self._call(on_settled, Settled.CONFIRMED, "")
        else:
            self._call(on_settled, Settled.UNKNOWN, _NACKED)

    def _call(self, on_settled: OnSettled, verdict: Settled, text: str) -> None:
        try:
            on_settled(verdict, text)
        except Exception as error:
            self._on_error(error)
