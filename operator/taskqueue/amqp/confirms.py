"""Which publishes are still unanswered: the map behind publisher confirms, without any I/O.

Confirms come in any order, one by one or for all tags up to one (``multiple``). A return (the
message reached no queue) comes before the confirm of the same message and carries no tag: it is
matched by message id, which therefore has to be unique among the unanswered publishes. Whatever
comes, and in whichever order, every publish is settled exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Settled(StrEnum):
    """How a publish ended."""

    #: In the queue, on disk as the queue's type has it.
    CONFIRMED = "Confirmed"
    #: No queue is bound to the key: the message is nowhere.
    RETURNED = "Returned"
    #: Refused by a full queue, or the channel is gone: it may be there or not, publish again.
    UNKNOWN = "Unknown"


OnSettled = Callable[[Settled, str], None]

_NACKED = "the broker refused the message: its queue is full or failing"


class Outstanding:
    """Unanswered publishes of one channel, by the tag the broker counts them with."""

    __slots__ = ("_entries", "_last", "_oldest", "_on_error", "_returned")

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        """Take what is called with an exception of a callback: it must not hold up the others."""
        self._on_error = on_error
        self._entries: dict[int, tuple[str, OnSettled]] = {}
        self._returned: dict[str, str] = {}
        self._last = 0
        #: No entry has a tag below this one, so that `multiple` looks at each tag only once.
        self._oldest = 1

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, message_id: str, on_settled: OnSettled) -> int:
        """Note the next publish and return its tag."""
        self._last += 1
        self._entries[self._last] = (message_id, on_settled)
        return self._last

    def returned(self, message_id: str | None, reason: str) -> None:
        """Note that the broker gave a message back; its confirm is still to come."""
        self._returned[message_id or ""] = reason

    def confirm(self, tag: int, *, multiple: bool, acked: bool) -> None:
        """Settle one publish, or all up to a tag (0: all there are); unknown tags are ignored."""
        if not multiple:
            entry = self._entries.pop(tag, None)
            if entry is not None:
                self._settle(entry, acked)
            return
        last = min(tag, self._last) if tag else self._last
        first, self._oldest = self._oldest, max(self._oldest, last + 1)
        # Callbacks may publish: their tags are above `last`.
        for each in range(first, last + 1):
            entry = self._entries.pop(each, None)
            if entry is not None:
                self._settle(entry, acked)

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown: no more answers will come."""
        entries, self._entries = self._entries, {}
        for _, on_settled in entries.values():
            self._tell(on_settled, Settled.UNKNOWN, reason)

    def _settle(self, entry: tuple[str, OnSettled], acked: bool) -> None:
        message_id, on_settled = entry
        returned = self._returned.pop(message_id, None) if self._returned else None
        if returned is not None:
            self._tell(on_settled, Settled.RETURNED, returned)
        elif acked:
            self._tell(on_settled, Settled.CONFIRMED, "")
        else:
            self._tell(on_settled, Settled.UNKNOWN, _NACKED)

    def _tell(self, on_settled: OnSettled, verdict: Settled, text: str) -> None:
        try:
            on_settled(verdict, text)
        except Exception as problem:
            self._on_error(problem)
