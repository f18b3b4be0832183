"""From any thread to one loop, many calls for one wake-up.

``loop.call_soon_threadsafe`` costs a handle and a write to the loop's pipe for every call. A
mailbox wakes the loop once for everything posted before it looks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class ThreadsafeCallQueue:
    """Calls posted by other threads, run on ``loop`` in the order they came."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[Callable[..., None], Any]] = deque()
        self._woken = False

    def post(self, call: Callable[..., None], argument: Any) -> None:
        """Have ``call(argument)`` run on the loop soon; on a closed loop nothing happens."""
        self._letters.append((call, argument))
        if self._woken:
            # `_read` clears the mark before it looks, so a letter put down while the mark is
            # still set is always seen by the reading the mark stands for.
            return
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._read)
        except RuntimeError:
            self._letters.clear()

    def _read(self) -> None:
        self._woken = False
        letters = self._letters
        while letters:
            call, argument = letters.popleft()
            call(argument)
