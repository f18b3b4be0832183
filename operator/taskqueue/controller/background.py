"""What runs beside the engine's loops: each piece ends by itself, or with the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from taskqueue.logs import EventLog

log = EventLog(__name__)


class Background:
    """Starts coroutines, holds them until they end, and logs what they fail of."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start one; its name is in the log if it fails."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("engine.task_failed", exc_info=problem, what=task.get_name())

    async def cancel(self, *others: asyncio.Task[None]) -> None:
        """Cancel all that run, and ``others``, and wait until they have ended."""
        ending = (*others, *self._running)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def never_ends(task: asyncio.Task[None]) -> None:
    """Fail as soon as a task that should never end has ended.

    Raises:
        RuntimeError: it has ended without an error of its own.
    """
    await asyncio.wait({task})
    if not task.cancelled() and (problem := task.exception()) is not None:
        raise problem
    raise RuntimeError(f"{task.get_name()} has ended")
