"""The outcomes of attempts that ended lately, so that a repeated message is answered, not run.

The operator publishes an attempt again, with the same token, when it does not know its end. A
worker that has ended it publishes the cached outcome again. Bounded by number and by bytes: the
cache saves work, the token gives the guarantee.
"""

from __future__ import annotations

from collections import OrderedDict

from taskqueue.records import record


@record
class CachedOutcome:
    """An encoded event: its routing key on the outcomes exchange, and its body."""

    key: str
    body: bytes


class OutcomeCache:
    """Keeps the outcome of each token that ended lately; the oldest are dropped first."""

    def __init__(self, *, tokens: int = 10_000, body_bytes: int = 32 * 1024 * 1024) -> None:
        self._tokens = tokens
        self._body_bytes = body_bytes
        self._held_bytes = 0
        self._outcomes: OrderedDict[str, CachedOutcome] = OrderedDict()

    def add(self, token: str, outcome: CachedOutcome) -> None:
        """Keep an outcome; the first one of a token stays."""
        if token in self._outcomes:
            return
        self._outcomes[token] = outcome
        self._held_bytes += len(outcome.body)
        while len(self._outcomes) > self._tokens or self._held_bytes > self._body_bytes:
            _, dropped = self._outcomes.popitem(last=False)
            self._held_bytes -= len(dropped.body)

    def get(self, token: str) -> CachedOutcome | None:
        """Return the outcome of the token, or None."""
        return self._outcomes.get(token)

    def __len__(self) -> int:
        return len(self._outcomes)
