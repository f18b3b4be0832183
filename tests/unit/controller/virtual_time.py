"""An event loop whose clock advances only when nothing is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

#: Time that passes while everything due runs.
INSTANT = 1e-6


class _Selector(selectors.SelectSelector):
    """Advances the clock instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock that begins at ``start``."""

    def __init__(self, start: float = 0.0) -> None:
        self._virtual = _Selector()
        self._virtual.now = start
        self.problems: list[Mapping[str, Any]] = []
        super().__init__(self._virtual)
        self.set_exception_handler(lambda _, context: self.problems.append(context))

    def time(self) -> float:
        return self._virtual.now

    def do(self, what: Callable[[], T]) -> T:
        """Call a function in the loop, and run everything that follows at once."""

        async def done() -> T:
            result = what()
            await asyncio.sleep(INSTANT)
            return result

        return self.run_until_complete(done())

    def pass_time(self, seconds: float) -> None:
        """Advance the clock."""
        self.run_until_complete(asyncio.sleep(seconds))

    def timers(self) -> int:
        """Return how many timers are set."""
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]

    def die(self) -> None:
        """Cancel everything that runs here, without another second."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.close()


async def until_time(seconds: float) -> None:
    """Advance virtual time to just after this many seconds since the start of the loop."""
    left = seconds - asyncio.get_running_loop().time()
    await asyncio.sleep(max(left, 0) + 0.001)
