"""asyncio tasks that run as long as their owner does."""

from __future__ import annotations

import asyncio


async def never_ends(task: asyncio.Task[None]) -> None:
    """Fail as soon as a task that should never end has ended."""
    await asyncio.wait({task})
    if not task.cancelled() and (problem := task.exception()) is not None:
        raise problem
    raise RuntimeError(f"{task.get_name()} has ended")
