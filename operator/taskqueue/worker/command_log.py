"""The orders about attempts a worker has seen, so that one which comes later is not run.

Pure. Every worker sees the orders of all queues and keeps each for a day, as long as the stream
does: the message of an attempt may reach it long after the order. Bounded by number too: the
oldest are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict

from taskqueue.contract.command import CommandKind

#: The stream holds fewer orders of usual size than this.
TOKENS = 150_000

#: What the stream's own retention is, in seconds.
AGE_SECONDS = 86_400.0


class CommandLog:
    """The last order about each token; times are seconds of any one monotonic clock."""

    def __init__(self, *, tokens: int = TOKENS, age_seconds: float = AGE_SECONDS) -> None:
        self._tokens = tokens
        self._age = age_seconds
        self._orders: OrderedDict[str, tuple[CommandKind, float]] = OrderedDict()

    def add(self, token: str, kind: CommandKind, now: float) -> None:
        """Keep an order; of several about one token the last counts."""
        orders = self._orders
        orders[token] = (kind, now)
        orders.move_to_end(token)
        while len(orders) > self._tokens or self._oldest() <= now - self._age:
            orders.popitem(last=False)

    def get(self, token: str) -> CommandKind | None:
        """Return what was ordered about the token, or None."""
        order = self._orders.get(token)
        return None if order is None else order[0]

    def __len__(self) -> int:
        return len(self._orders)

    def _oldest(self) -> float:
        return next(iter(self._orders.values()))[1]
