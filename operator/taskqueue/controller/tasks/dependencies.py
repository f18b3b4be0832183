"""Tracks the state of the dependencies of every Task with dependsOn.

The informer has the unfinished Tasks. Any other is read from the API server: it is finished, or it
does not exist. What does not exist, or should be in the informer and is not, is read again after
pauses that grow, in case it was created and ended during a break of the watch.
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
from taskqueue.controller.tasks.read_pool import ReadPool, Spawn
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_table import get_outline
from taskqueue.logs import EventLog
from taskqueue.model.task import Phase, Task
from taskqueue.timestamps import from_rfc3339

log = EventLog(__name__)

#: How long until a missing Task is read again, in seconds: the first time, and at most.
MISSING_SECONDS, _LONGEST_SECONDS = 15.0, 240.0
#: How often it is looked whether the informer has the unfinished ones, in seconds.
_CHECK_SECONDS = 60.0
#: Tasks looked at in one turn of the loop then.
_TASKS_A_TURN = 5_000
_READS_AT_ONCE = 4
#: From one look for cycles to the next, in seconds; longer where a look takes long.
_CYCLES_SECONDS = 0.05
#: Looks for cycles take one part of this many of the loop's time.
_CYCLES_SHARE = 5


class Dependencies:
    """Tracks dependencies, and reads unknown ones.

    Args:
        client: for the API server.
        spawn: runs reads, and the search for cycles, beside everything else.
        is_unfinished: whether the informer has an unfinished Task of that name.
        on_change: called with the names of Tasks whose dependencies may have changed.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        spawn: Spawn,
        is_unfinished: Callable[[TaskKey], bool],
        on_change: Callable[[Iterable[TaskKey]], None],
    ) -> None:
        self._client = client
        self._spawn = spawn
        self._is_unfinished = is_unfinished
        self._on_change = on_change
        self._graph = DependencyGraph()
        #: Whether cycles are being looked for.
        self.is_searching = False
        self._reads: ReadPool[TaskKey] = ReadPool(
            self._read,
            what="dependencies",
            at_once=_READS_AT_ONCE,
            longest_seconds=_LONGEST_SECONDS,
            spawn=spawn,
        )

    def state_of(self, task: Task) -> DependencyState:
        """Return the state of a Task's dependencies."""
        return self._graph.state(_key(task)) if task.spec.depends_on else INDEPENDENT

    def is_needed(self, key: TaskKey) -> bool:
        """Return whether an unfinished Task depends on this one."""
        return key in self._graph.dependents

    def update(self, task: Task) -> None:
        """Update the graph from an unfinished Task that is new or changed."""
        key, graph = _key(task), self._graph
        if key in graph.dependents:
            self._reads.discard(key)
            self._notify(graph.mark_unfinished(key), but=key)
        if task.spec.depends_on or key in graph.needs:
            changed = graph.set_dependencies(key, task.spec.depends_on, task.spec.whens)
            for name in task.spec.depends_on:
                need = (task.namespace, name)
                if self._is_unfinished(need):
                    graph.mark_unfinished(need)
                elif graph.is_unknown(need):
                    self._reads.request(need)
            self._notify(changed, but=key)
            self._search_cycles()

    def on_finished(self, task: Task, phase: Phase, reason: str, completed: float) -> None:
        """Update the graph: a Task has its final status."""
        self._notify(self._graph.mark_finished(_key(task), _ending(phase, reason, completed)))
        self._search_cycles()

    def on_deleted(self, task: Task) -> None:
        """Update the graph: an unfinished Task is deleted."""
        key = _key(task)
        self._notify(self._graph.mark_deleted(key))
        if self.is_needed(key):
            self._reads.request_later(key, MISSING_SECONDS)
        self._search_cycles()

    async def run(self) -> None:
        """Read again and again what should be in the informer and is not, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            present = list(self._graph.present())
            for start in range(0, len(present), _TASKS_A_TURN):
                for key in present[start : start + _TASKS_A_TURN]:
                    if not self._is_unfinished(key):
                        self._reads.request_later(key, 0.0)
                await asyncio.sleep(0)

    async def _read(self, key: TaskKey) -> float | None:
        """Read a Task and update the graph; return when it is to be read again, if it is."""
        if not self.is_needed(key):
            return None
        if self._is_unfinished(key):
            self._notify(self._graph.mark_unfinished(key))
            return None
        try:
            raw = await get_outline(self._client, *key)
            changed, again_after = self._read_status(key, raw["status"])
        except ApiError as error:
            if error.status != 404:
                raise
            changed, again_after = self._graph.mark_missing(key), MISSING_SECONDS
        except (ValueError, KeyError, TypeError) as error:  # one bad object stops no other
            log.error("dependency.unreadable", namespace=key[0], task=key[1], error=str(error))
            return MISSING_SECONDS
        self._notify(changed)
        return again_after

    def _read_status(
        self, key: TaskKey, status: Mapping[str, Any]
    ) -> tuple[set[TaskKey], float | None]:
        phase = Phase(status.get("phase", Phase.PENDING))
        if not phase.terminal:
            return self._graph.mark_unfinished(key), MISSING_SECONDS
        completed = status.get("completionTime")
        at = from_rfc3339(completed) if completed else 0.0
        ending = _ending(phase, status.get("reason", ""), at)
        return self._graph.mark_finished(key, ending), None

    def _search_cycles(self) -> None:
        if self._graph.is_doubtful and not self.is_searching:
            self.is_searching = True
            self._spawn(self._find_cycles(), "search for cycles of dependencies")

    async def _find_cycles(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._graph.is_doubtful:
                begun = loop.time()
                for members in self._graph.find_cycles():
                    self._notify(members)
                    await asyncio.sleep((_CYCLES_SHARE - 1) * (loop.time() - begun))
                    begun = loop.time()
                await asyncio.sleep(_CYCLES_SECONDS)
        finally:
            self.is_searching = False

    def _notify(self, changed: set[TaskKey], but: TaskKey | None = None) -> None:
        others = [key for key in changed if key != but]
        if others:
            self._on_change(others)


def _ending(phase: Phase, reason: str, completed: float) -> Ending:
    how = f"{phase.value} with reason {reason}" if reason else phase.value
    description = "was Cancelled" if phase is Phase.CANCELLED else f"has {how}"
    if phase is Phase.SUCCEEDED:
        return Ending(True, "", completed)
    return Ending(False, description, completed, failed=phase is Phase.FAILED)


def _key(task: Task) -> TaskKey:
    return (task.namespace, task.name)
