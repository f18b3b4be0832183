"""Tracks the state of the dependencies of every Task with dependsOn.

The informer has the unfinished Tasks. Any other is read from the API server: it is finished, or it
does not exist. What does not exist, or should be in the informer and is not, is read again every
few seconds, in case it was created and ended during a break of the watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from taskqueue.controller.tasks.dependency_graph import (
    INDEPENDENT,
    DependencyGraph,
    DependencyState,
    Ending,
    TaskKey,
)
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_table import get_outline
from taskqueue.logs import EventLog
from taskqueue.model.task import Phase, Task
from taskqueue.timestamps import from_rfc3339

log = EventLog(__name__)

#: How often missing Tasks are read again.
_MISSING_SECONDS = 15.0
_PAUSE_SECONDS = 1.0
#: Concurrent reads.
_READS_AT_ONCE = 4


class Dependencies:
    """Tracks dependencies, and reads unknown ones while `run` is running.

    Args:
        client: for the API server.
        is_unfinished: whether the informer has an unfinished Task of that name.
        on_change: called with the names of Tasks whose dependencies may have changed.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        is_unfinished: Callable[[TaskKey], bool],
        on_change: Callable[[Iterable[TaskKey]], None],
    ) -> None:
        self._client = client
        self._is_unfinished = is_unfinished
        self._on_change = on_change
        self._graph = DependencyGraph()
        self._work = asyncio.Event()

    def state_of(self, task: Task) -> DependencyState:
        """Return the state of a Task's dependencies."""
        return self._graph.state(_key(task)) if task.spec.depends_on else INDEPENDENT

    def is_needed(self, key: TaskKey) -> bool:
        """Return whether an unfinished Task depends on this one."""
        return key in self._graph.dependents

    def update(self, task: Task) -> None:
        """Update the graph from an unfinished Task that is new or changed."""
        key = _key(task)
        if key in self._graph.dependents:
            self._notify(self._graph.mark_unfinished(key), but=key)
        if task.spec.depends_on or key in self._graph.needs:
            changed = self._graph.set_dependencies(key, task.spec.depends_on)
            for name in task.spec.depends_on:
                need = (task.namespace, name)
                if self._is_unfinished(need):
                    self._graph.mark_unfinished(need)
            self._notify(changed, but=key)
            self._work.set()

    def on_finished(self, task: Task, phase: Phase, reason: str, completed: float) -> None:
        """Update the graph: a Task has its final status."""
        self._notify(self._graph.mark_finished(_key(task), _ending(phase, reason, completed)))

    def on_deleted(self, task: Task) -> None:
        """Update the graph: an unfinished Task is deleted."""
        self._notify(self._graph.mark_deleted(_key(task)))
        self._work.set()

    async def run(self) -> None:
        """Read unknown dependencies until cancelled."""
        loop = asyncio.get_running_loop()
        next_check = loop.time() + _MISSING_SECONDS
        while True:
            self._work.clear()
            sought = list(self._graph.unknown())
            if loop.time() >= next_check:
                next_check = loop.time() + _MISSING_SECONDS
                sought += self._graph.missing()
                sought += (key for key in self._graph.present() if not self._is_unfinished(key))
            reads = asyncio.Semaphore(_READS_AT_ONCE)
            found = await asyncio.gather(*(self._find(key, reads) for key in sought))
            if not all(found):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                async with asyncio.timeout(max(next_check - loop.time(), 0.0)):
                    await self._work.wait()
            except TimeoutError:
                pass

    async def _find(self, key: TaskKey, reads: asyncio.Semaphore) -> bool:
        """Read a Task and update the graph; return whether that was possible."""
        try:
            async with reads:
                raw = await get_outline(self._client, *key)
        except ApiError as error:
            if error.status != 404:
                log.warning("dependency.not_read", namespace=key[0], task=key[1], error=str(error))
                return False
            self._notify(self._graph.mark_missing(key))
            return True
        self._notify(self._read_status(key, raw["status"]))
        return True

    def _read_status(self, key: TaskKey, status: Mapping[str, Any]) -> set[TaskKey]:
        phase = Phase(status.get("phase", Phase.PENDING))
        if not phase.terminal:
            return self._graph.mark_unfinished(key)
        completed = status.get("completionTime")
        at = from_rfc3339(completed) if completed else 0.0
        return self._graph.mark_finished(key, _ending(phase, status.get("reason", ""), at))

    def _notify(self, changed: set[TaskKey], but: TaskKey | None = None) -> None:
        others = [key for key in changed if key != but]
        if others:
            self._on_change(others)


def _ending(phase: Phase, reason: str, completed: float) -> Ending:
    how = f"{phase.value} with reason {reason}" if reason else phase.value
    description = "was Cancelled" if phase is Phase.CANCELLED else f"has {how}"
    return Ending(phase is Phase.SUCCEEDED, description, completed)


def _key(task: Task) -> TaskKey:
    return (task.namespace, task.name)
