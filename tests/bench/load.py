"""Doing one thing many times, a fixed number at once: the load of every benchmark and its floor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable


async def at_once(
    clients: int, items: Iterable[str], action: Callable[[str], Awaitable[None]]
) -> None:
    """Call ``action`` for every item, never more than ``clients`` at once.

    Raises:
        Exception: what the first action that failed raised; the others are stopped.
    """
    left = iter(items)

    async def work() -> None:
        for item in left:
            await action(item)

    workers = [asyncio.create_task(work()) for _ in range(clients)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
