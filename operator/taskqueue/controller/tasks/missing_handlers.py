"""The handlers of one queue that a worker did not know, and the Tasks that wait for them. Pure.

A Task whose handler no worker knows must cost next to nothing, and go on soon after workers that
know it are there. So

* all Tasks of a handler are tried again at the same time, after a pause that grows with each
  try. In between nothing of them is at the broker, and the pool may shrink to zero;
* however many are tried at once, they ask for one worker: it says as much as a hundred would;
* when a worker registers the handler, runs a Task of it, or the TaskQueue is changed, the handler
  is missing no more, and the Tasks are tried at once.

A worker that releases an attempt, or stops it, has said nothing about its handler.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass

from taskqueue.controller.tasks.retry import backoff_seconds
from taskqueue.model.task import RetryBackoff

#: A Task's reason while no worker knows its handler.
UNKNOWN_HANDLER = "UnknownHandler"
#: The pauses: workers that know the handler may be on their way, so the first is short.
PAUSES = RetryBackoff(initial_seconds=5.0, factor=2.0, max_seconds=300.0, jitter=0.1)
#: In a heartbeat: the worker runs whatever it gets.
_ANY = "*"


@dataclass(frozen=True, slots=True)
class MissingHandler:
    """A handler that no worker knew: how often it was tried, and when it is tried again."""

    tries: int
    retry_at: float


def next_retry(known: MissingHandler | None, *, now: float, random: float) -> MissingHandler:
    """Return when a Task is tried again that a worker did not know the handler of.

    Args:
        known: what is known of the handler; the Tasks of one try wait for the same moment.
        now: seconds since the epoch.
        random: a number in [0, 1) for the jitter.
    """
    if known is not None and now < known.retry_at:
        return known
    tries = 1 if known is None else known.tries + 1
    return MissingHandler(
        tries, now + backoff_seconds(PAUSES, failed_attempts=tries, random=random)
    )


class MissingHandlers:
    """Holds the missing handlers of one queue, and their Tasks.

    Attributes:
        handlers: what is known of each, by name; changed here only. While it is empty, as usual,
            nothing of this need be asked.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, MissingHandler] = {}
        #: The Tasks that a worker did not know the handler of, by handler, and the reverse.
        self._uids: dict[str, dict[str, None]] = {}
        self._handler_of: dict[str, str] = {}
        #: Those of a missing handler that are on their way to a worker: all of them, new ones too.
        self._tried: dict[str, str] = {}

    @property
    def task_count(self) -> int:
        """How many Tasks wait for a missing handler."""
        return len(self._handler_of)

    @property
    def tried(self) -> int:
        """How many Tasks of missing handlers are on their way to a worker."""
        return len(self._tried)

    def first(self, count: int) -> tuple[str, ...]:
        """Return the first so many of the handlers, by name."""
        return tuple(heapq.nsmallest(count, self.handlers))

    def add(self, handler: str, uid: str, missing: MissingHandler) -> None:
        """Note that a worker did not know the handler of a Task."""
        self.handlers[handler] = missing
        self._uids.setdefault(handler, {})[uid] = None
        self._handler_of[uid] = handler

    def remove_task(self, uid: str) -> None:
        """Let go of a Task; a handler that none waits for is not missing."""
        self._tried.pop(uid, None)
        handler = self._handler_of.pop(uid, None)
        if handler is not None:
            del self._uids[handler][uid]
            if not self._uids[handler]:
                self.pop(handler)

    def begin_try(self, uid: str, handler: str) -> None:
        """Note that a Task waits for its turn or is published."""
        if handler in self.handlers:
            self._tried[uid] = handler

    def end_try(self, uid: str) -> None:
        """Note that a Task does so no more."""
        self._tried.pop(uid, None)

    def known_to(self, names: Collection[str]) -> list[str]:
        """Return the missing handlers that a worker with these handlers knows."""
        return [one for one in self.handlers if one in names or _ANY in names]

    def pop(self, handler: str) -> list[str]:
        """Take a handler for known, and return the Tasks that have waited for it."""
        self.handlers.pop(handler, None)
        self._tried = {uid: one for uid, one in self._tried.items() if one != handler}
        uids = list(self._uids.pop(handler, ()))
        for uid in uids:
            del self._handler_of[uid]
        return uids

    def pop_all(self) -> list[str]:
        """Take all handlers for known, and return the Tasks that have waited for them."""
        return [uid for handler in list(self.handlers) for uid in self.pop(handler)]
