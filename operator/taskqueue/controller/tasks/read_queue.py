"""The order in which objects are read on behalf of many namespaces.

* A key is in the queue once, however many wait for what is read.
* Namespaces are served in turn, so none waits for another's keys.
* In a namespace new keys come before those that are read again. The latter wait longer each time,
  and only so many of a namespace are read again in a second.
* When a read fails, its whole namespace pauses, for longer each time: whatever refuses one read is
  likely to refuse the next.

All times are seconds of one clock, which the caller reads.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from typing import Generic, TypeVar

#: A namespace, and what is read there.
K = TypeVar("K", bound=tuple[str, ...])

#: Keys of one namespace that are read again in a second, at most.
REPEATS_A_SECOND = 20
#: How long a namespace pauses after a read that failed: the first time, and at most.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


class ReadQueue(Generic[K]):
    """Keys to be read, of many namespaces; see the module's rules.

    Args:
        longest_seconds: the longest wait between two reads of a key.
    """

    def __init__(self, *, longest_seconds: float) -> None:
        self._longest = longest_seconds
        self._shares: dict[str, _Share[K]] = {}
        #: The namespaces in `_shares`; the first has its turn.
        self._turns: deque[str] = deque()
        #: How long each key has waited that is being read now; 0: it is new.
        self._waited: dict[K, float] = {}
        #: Those of them that are not to be read again.
        self._dropped: set[K] = set()

    def __len__(self) -> int:
        """Return how many keys there are, those that are being read included."""
        waiting = sum(len(one.fresh) + len(one.repeats) for one in self._shares.values())
        return waiting + len(self._waited)

    def __contains__(self, key: K) -> bool:
        """Return whether a key waits or is being read."""
        share = self._shares.get(key[0])
        waits = share is not None and (key in share.fresh or key in share.repeats)
        return waits or key in self._waited

    def add(self, key: K) -> None:
        """Have a key read as soon as it is its turn; one that is being read is not read again."""
        self._dropped.discard(key)
        if key not in self._waited:
            share = self._share(key[0])
            share.repeats.pop(key, None)
            share.fresh[key] = None

    def add_later(self, key: K, now: float, seconds: float) -> None:
        """Have a key read after some seconds, unless it waits already or is being read."""
        self._dropped.discard(key)
        if key not in self:
            self._share(key[0]).wait(key, now, seconds)

    def discard(self, key: K) -> None:
        """Let go of a key; one that is being read does not come again."""
        if key in self._waited:
            self._dropped.add(key)
        share = self._shares.get(key[0])
        if share is not None:
            share.fresh.pop(key, None)
            share.repeats.pop(key, None)

    def pop(self, now: float) -> K | None:
        """Return the next key to read; None: none is due. `finish` or `fail` must follow."""
        for _ in range(len(self._turns)):
            namespace = self._turns[0]
            share = self._shares[namespace]
            if share.is_over(now):
                self._turns.popleft()
                del self._shares[namespace]
                continue
            self._turns.rotate(-1)
            found = share.pop(now)
            if found is not None:
                key, waited = found
                self._waited[key] = waited
                share.reading += 1
                return key
        return None

    def next_due(self) -> float | None:
        """Return when `pop` may give a key; None: when one is added."""
        dues = (one.due() for one in self._shares.values())
        return min((at for at in dues if at is not None), default=None)

    def finish(self, key: K, now: float, again_after: float | None = None) -> None:
        """Take note that a key was read.

        Args:
            key: what `pop` returned.
            now: the time.
            again_after: read it again after these seconds, or after twice as long as before it was
                read this time, if that is longer; None: not again.
        """
        share, waited, dropped = self._end(key)
        share.pause = 0.0
        if again_after is not None and not dropped:
            share.wait(key, now, max(again_after, min(2 * waited, self._longest)))

    def fail(self, key: K, now: float, retry_after: float = 0.0) -> None:
        """Take note that a key could not be read: it is tried again, after its namespace's pause.

        Args:
            key: what `pop` returned.
            now: the time.
            retry_after: the pause is as long as this at least, in seconds.
        """
        share, waited, dropped = self._end(key)
        share.rest(now, retry_after)
        if dropped:
            return
        if waited:
            share.wait(key, now, waited)
        else:
            share.fresh[key] = None

    def _end(self, key: K) -> tuple[_Share[K], float, bool]:
        share = self._shares[key[0]]
        share.reading -= 1
        dropped = key in self._dropped
        self._dropped.discard(key)
        return share, self._waited.pop(key), dropped

    def _share(self, namespace: str) -> _Share[K]:
        share = self._shares.get(namespace)
        if share is None:
            share = self._shares[namespace] = _Share()
            self._turns.append(namespace)
        return share


class _Share(Generic[K]):
    """The keys of one namespace."""

    __slots__ = ("_heap", "_next_repeat", "_until", "fresh", "pause", "reading", "repeats")

    def __init__(self) -> None:
        #: New keys, in order.
        self.fresh: OrderedDict[K, None] = OrderedDict()
        #: Keys that wait to be read again: when, and how long they wait in all.
        self.repeats: dict[K, tuple[float, float]] = {}
        #: Keys that are being read.
        self.reading = 0
        #: The length of the last pause; 0: the last read succeeded.
        self.pause = 0.0
        self._until = float("-inf")
        #: `repeats` by time, with entries that hold no more.
        self._heap: list[tuple[float, K]] = []
        self._next_repeat = float("-inf")

    def is_over(self, now: float) -> bool:
        """Return whether nothing has to be remembered of the namespace."""
        return not (self.fresh or self.repeats or self.reading) and now >= self._until

    def pop(self, now: float) -> tuple[K, float] | None:
        """Return the next key that is due and how long it has waited, or None."""
        if now < self._until:
            return None
        if self.fresh:
            return self.fresh.popitem(last=False)[0], 0.0
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now or self._next_repeat > now:
            return None
        _, key = heapq.heappop(self._heap)
        self._next_repeat = max(self._next_repeat, now - 1.0) + 1.0 / REPEATS_A_SECOND
        return key, self.repeats.pop(key)[1]

    def due(self) -> float | None:
        """Return when `pop` may give a key; None: never, as things are."""
        if self.fresh:
            return self._until
        self._drop_stale()
        if not self._heap:
            return None
        return max(self._until, self._heap[0][0], self._next_repeat)

    def wait(self, key: K, now: float, seconds: float) -> None:
        """Have a key wait to be read again."""
        self.repeats[key] = (now + seconds, seconds)
        heapq.heappush(self._heap, (now + seconds, key))

    def rest(self, now: float, at_least: float) -> None:
        """Pause after a failed read, longer than the last time; reads begun before count once."""
        if now >= self._until:
            longer = min(max(2 * self.pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            self.pause = max(longer, at_least)
            self._until = now + self.pause

    def _drop_stale(self) -> None:
        heap = self._heap
        while heap and self.repeats.get(heap[0][1], (None,))[0] != heap[0][0]:
            heapq.heappop(heap)
