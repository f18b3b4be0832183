"""Attempts that were taken back, and what is kept for them until their worker has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class KeyHolds:
    """Keeps the concurrency key of each such attempt, for a limited time.

    Args:
        let_go: called with the key and the token once the attempt can run no more.
    """

    def __init__(self, let_go: Callable[[str, str], None]) -> None:
        self._let_go = let_go
        self._kept: dict[str, tuple[str, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, token: str, key: str, seconds: float) -> None:
        """Keep the key of an attempt until it is answered, or this long."""
        timer = asyncio.get_running_loop().call_later(seconds, self.end, token)
        self._kept[token] = (key, timer)

    def end(self, token: str) -> None:
        """Take note that an attempt runs no more; harmless for one that is not kept."""
        kept = self._kept.pop(token, None)
        if kept is not None:
            key, timer = kept
            timer.cancel()
            self._let_go(key, token)
