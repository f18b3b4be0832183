"""A store of results in memory, which is away when a test says so."""

from __future__ import annotations

import asyncio

from taskqueue.results.reference import StoredResult
from taskqueue.results.store import StoreError


class MemoryStore:
    """Keeps the contract of `taskqueue.results.store.ResultStore`.

    Attributes:
        away_until: on the loop's clock; each call before it fails.
        transient: whether these failures pass by themselves.
        call_seconds: how long a call takes.
        calls: when there were any.
        kept: the results, by key.
        written_at: when.
    """

    def __init__(
        self, *, away_until: float = 0.0, transient: bool = True, call_seconds: float = 0.0
    ) -> None:
        self.away_until = away_until
        self.transient = transient
        self.call_seconds = call_seconds
        self.calls: list[float] = []
        self.kept: dict[str, StoredResult] = {}
        self.written_at: dict[str, float] = {}
        self.deleted: list[tuple[str, float]] = []
        self.closed = 0

    async def put(self, key: str, result: StoredResult) -> StoredResult:
        await self._call()
        return self.kept.setdefault(key, result)

    async def get(self, key: str) -> StoredResult | None:
        await self._call()
        return self.kept.get(key)

    async def delete_before(self, prefix: str, moment: float) -> int:
        await self._call()
        self.deleted.append((prefix, moment))
        return 3

    async def close(self) -> None:
        self.closed += 1

    async def _call(self) -> None:
        now = asyncio.get_running_loop().time()
        self.calls.append(now)
        await asyncio.sleep(self.call_seconds)
        if now < self.away_until:
            raise StoreError("away", transient=self.transient)
