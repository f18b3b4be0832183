"""Calls from any thread to one event loop, many with one wake-up.

``loop.call_soon_threadsafe`` costs a handle and a write to the loop's pipe for every call. This
queue wakes the loop once for everything that is posted until the loop runs the calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class ThreadsafeCallQueue:
    """Runs calls that other threads post, on ``loop``, in the order they were posted."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., None], Any]] = deque()
        self._woken = False

    def post(self, call: Callable[..., None], argument: Any) -> None:
        """Have ``call(argument)`` run on the loop soon; on a closed loop nothing happens."""
        self._calls.append((call, argument))
        if self._woken:
            # `_run_calls` clears the flag before it reads the queue, so it always sees a call
            # that was appended while the flag was still set.
            return
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._run_calls)
        except RuntimeError:
            self._calls.clear()

    def _run_calls(self) -> None:
        self._woken = False
        calls = self._calls
        try:
            while calls:
                call, argument = calls.popleft()
                call(argument)
        finally:
            if calls and not self._woken:  # one has raised; the others are not lost with it
                self._woken = True
                self._loop.call_soon(self._run_calls)
