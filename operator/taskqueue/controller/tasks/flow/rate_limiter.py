"""Rate limits: when the next attempt may be dispatched.

The generic cell rate algorithm, which is a token bucket that needs one number: when the bucket is
full again. A bucket holds ``burst`` attempts and gets one each `RateLimit.interval`. So in any time
of w seconds at most ``burst + w / interval`` attempts pass.

A bucket is empty at first: what another operator has dispatched just before is not known here. One
that is full is as good as one that was never used, and is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from taskqueue.model.flow import RateLimit

#: What floats lose of a time.
_INSTANT_SECONDS = 1e-6
#: Buckets kept beside as many as were left by the last purge, before the next.
_SLACK = 64


class _Buckets:
    """The buckets of one limit, by fairness key; that of the whole queue is under ""."""

    def __init__(self, limit: RateLimit, since: float) -> None:
        self.limit = limit
        #: When each is full again.
        self._full_at: dict[str, float] = {}
        self._full_at_first = since + limit.burst * limit.interval
        self._most = _SLACK

    def ready_at(self, key: str) -> float:
        """Return from when on the bucket has an attempt."""
        held = (self.limit.burst - 1) * self.limit.interval
        return self._full_at.get(self._own(key), self._full_at_first) - held

    def take(self, key: str, now: float) -> None:
        """Take an attempt."""
        own = self._own(key)
        full_at = max(self._full_at.get(own, self._full_at_first), now)
        self._full_at[own] = full_at + self.limit.interval
        if len(self._full_at) > self._most:
            kept = self._full_at_first if now < self._full_at_first else now
            self._full_at = {one: at for one, at in self._full_at.items() if at > kept}
            self._most = 2 * len(self._full_at) + _SLACK

    def _own(self, key: str) -> str:
        return key if self.limit.per_key else ""


class RateLimiter:
    """The rate limits of one TaskQueue.

    All times are seconds of one clock that never jumps.
    """

    def __init__(self) -> None:
        self._buckets: tuple[_Buckets, ...] = ()

    def configure(self, limits: Iterable[RateLimit], now: float) -> None:
        """Apply these limits; the buckets of one that has not changed stay as they are."""
        before = {one.limit: one for one in self._buckets}
        self._buckets = tuple(before.get(one) or _Buckets(one, now) for one in limits)

    def wait_seconds(self, key: str, now: float) -> float:
        """Return how long until an attempt of this fairness key may be dispatched; 0.0: it may."""
        left = max((one.ready_at(key) - now for one in self._buckets), default=0.0)
        return left if left > _INSTANT_SECONDS else 0.0

    def wait_seconds_of_all(self, now: float) -> float:
        """Return how long no attempt of any key may be dispatched."""
        whole = (one for one in self._buckets if not one.limit.per_key)
        left = max((one.ready_at("") - now for one in whole), default=0.0)
        return left if left > _INSTANT_SECONDS else 0.0

    def take(self, key: str, now: float) -> bool:
        """Count an attempt of this key, if it may be dispatched now; return whether it may."""
        if self.wait_seconds(key, now):
            return False
        for one in self._buckets:
            one.take(key, now)
        return True

    def blocking(self, key: str, now: float) -> str:
        """Return the name of the limit that lasts longest for a key; "": none holds it back."""
        waits = [(one.ready_at(key) - now, one.limit.name) for one in self._buckets]
        seconds, name = max(waits, default=(0.0, ""))
        return name if seconds > _INSTANT_SECONDS else ""
