"""Concurrency keys held for recalled attempts until their worker has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class KeyHolds:
    """Holds the concurrency key of each recalled attempt, for a limited time.

    Args:
        on_end: called with the key and the token once the attempt can no longer run.
    """

    def __init__(self, on_end: Callable[[str, str], None]) -> None:
        self._on_end = on_end
        self._holds: dict[str, tuple[str, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def add(self, token: str, key: str, seconds: float) -> None:
        """Hold the key of an attempt until `end`, or this long."""
        timer = asyncio.get_running_loop().call_later(seconds, self.end, token)
        self._holds[token] = (key, timer)

    def end(self, token: str) -> None:
        """End the hold of an attempt that no longer runs; does nothing if there is none."""
        hold = self._holds.pop(token, None)
        if hold is not None:
            key, timer = hold
            timer.cancel()
            self._on_end(key, token)
