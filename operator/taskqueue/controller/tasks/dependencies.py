"""Knows for every Task with dependsOn how its dependencies stand.

The feed shows the unfinished ones. What it does not show is read from the API server: it is
finished, or it does not exist. What does not exist, or should be in the feed and is not, is looked
for again, for the case that it came and ended while the feed looked away.
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
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.logs import EventLog
from taskqueue.model.task import Phase, Task
from taskqueue.timestamps import from_rfc3339

log = EventLog(__name__)

#: How often what does not exist is looked for again.
_MISSING_SECONDS = 15.0
_PAUSE_SECONDS = 1.0
#: Reads under way at once.
_READS_AT_ONCE = 4


class Dependencies:
    """See the module's contract. `run` must be running for anything to be looked up.

    Args:
        client: for the API server.
        unfinished: tells whether the feed shows an unfinished Task of that name.
        look: called with the names of Tasks whose dependencies may stand otherwise now.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        unfinished: Callable[[TaskKey], bool],
        look: Callable[[Iterable[TaskKey]], None],
    ) -> None:
        self._client = client
        self._unfinished = unfinished
        self._look = look
        self._graph = DependencyGraph()
        self._work = asyncio.Event()

    def of(self, task: Task) -> DependencyState:
        """Return how the dependencies of a Task stand."""
        return self._graph.state(_key(task))

    def needed(self, key: TaskKey) -> bool:
        """Tell whether an unfinished Task depends on this one."""
        return self._graph.needed(key)

    def put(self, task: Task) -> None:
        """Take an unfinished Task that is new or changed."""
        key = _key(task)
        self._tell(self._graph.exists(key), but=key)
        if task.spec.depends_on or self._graph.state(key) is not INDEPENDENT:
            changed = self._graph.put(key, task.spec.depends_on)
            for name in task.spec.depends_on:
                need = (task.namespace, name)
                if self._unfinished(need):
                    self._graph.exists(need)
            self._tell(changed, but=key)
            self._work.set()

    def ended(self, task: Task, phase: Phase, reason: str, completed: float) -> None:
        """Take note that a Task has its final status."""
        self._tell(self._graph.ended(_key(task), _ending(phase, reason, completed)))

    def gone(self, task: Task) -> None:
        """Take note that an unfinished Task is deleted."""
        self._tell(self._graph.gone(_key(task)))
        self._work.set()

    async def run(self) -> None:
        """Look up what is not known, until cancelled."""
        loop = asyncio.get_running_loop()
        again = loop.time() + _MISSING_SECONDS
        while True:
            self._work.clear()
            sought = list(self._graph.unknown())
            if loop.time() >= again:
                again = loop.time() + _MISSING_SECONDS
                sought += self._graph.missing()
                sought += (key for key in self._graph.present() if not self._unfinished(key))
            reads = asyncio.Semaphore(_READS_AT_ONCE)
            found = await asyncio.gather(*(self._find(key, reads) for key in sought))
            if not all(found):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                async with asyncio.timeout(max(again - loop.time(), 0.0)):
                    await self._work.wait()
            except TimeoutError:
                pass

    async def _find(self, key: TaskKey, reads: asyncio.Semaphore) -> bool:
        """Find out about a Task; tell whether that was possible."""
        try:
            async with reads:
                raw = await self._client.get(task_path(*key))
        except ApiError as problem:
            if problem.status != 404:
                log.warning(
                    "dependency.not_read", namespace=key[0], task=key[1], problem=str(problem)
                )
                return False
            self._tell(self._graph.absent(key))
            return True
        self._tell(self._learn(key, raw.get("status") or {}))
        return True

    def _learn(self, key: TaskKey, status: Mapping[str, Any]) -> set[TaskKey]:
        phase = Phase(status.get("phase", Phase.PENDING))
        if not phase.terminal:
            return self._graph.exists(key)
        completed = status.get("completionTime")
        at = from_rfc3339(completed) if completed else 0.0
        return self._graph.ended(key, _ending(phase, status.get("reason", ""), at))

    def _tell(self, changed: set[TaskKey], but: TaskKey | None = None) -> None:
        others = [key for key in changed if key != but]
        if others:
            self._look(others)


def _ending(phase: Phase, reason: str, completed: float) -> Ending:
    how = f"{phase.value} with reason {reason}" if reason else phase.value
    told = "was Cancelled" if phase is Phase.CANCELLED else f"has {how}"
    return Ending(phase is Phase.SUCCEEDED, told, completed)


def _key(task: Task) -> TaskKey:
    return (task.namespace, task.name)
