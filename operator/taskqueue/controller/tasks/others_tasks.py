"""The Tasks of TaskQueues that another installation serves: kept, and otherwise left alone.

Nothing is written, published or commanded for them. They are kept as a standby keeps them, because
the TaskQueue may be claimed by this installation later, or be deleted: then they are handed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from taskqueue.controller.tasks.task_feed import StandbyTasks, TaskHandler
from taskqueue.controller.tasks.tracked_task import SeenTask, TrackedTask
from taskqueue.kubernetes.informer import identity
from taskqueue.model.queue import QueueKey


class OthersTasks:
    """Keeps the Tasks of the TaskQueues that were added.

    Attributes:
        kept: by TaskQueue; usually there is none.
    """

    def __init__(self) -> None:
        self.kept: dict[QueueKey, StandbyTasks] = {}
        self._queues: dict[str, QueueKey] = {}
        #: Those whose Tasks are being handed over.
        self._ending: set[QueueKey] = set()

    def __contains__(self, key: QueueKey) -> bool:
        return key in self.kept and key not in self._ending

    def add(self, key: QueueKey, tasks: Iterable[TrackedTask]) -> None:
        """Keep the Tasks of a TaskQueue from now on: these, which were tracked, and all others."""
        self._ending.discard(key)
        self.kept.setdefault(key, StandbyTasks())
        for tracked in tasks:
            task = replace(tracked.task, status=tracked.written)
            self.keep(SeenTask(task, tracked.fence, ""))

    def keep(self, seen: SeenTask) -> None:
        """Keep a Task of such a TaskQueue."""
        key = seen.queue_key
        self._queues[seen.task.uid] = key
        self.kept[key].keep(seen)

    def keep_raw(self, raw: dict[str, Any]) -> bool:
        """Keep an object if it is a Task of such a TaskQueue; return whether it is.

        One whose TaskQueue cannot be read belongs to none.
        """
        (namespace, _), uid = identity(raw)
        spec = raw.get("spec")
        key = (namespace, str(spec.get("queue", ""))) if isinstance(spec, dict) else ("", "")
        if key not in self.kept:
            return False
        self._queues[uid] = key
        self.kept[key].on_upserted(raw)
        return True

    def discard(self, uid: str) -> None:
        """Drop a Task that left the informer."""
        key = self._queues.pop(uid, None)
        if key in self.kept:
            self.kept[key].discard(uid)

    async def hand_over(self, key: QueueKey, handler: TaskHandler) -> None:
        """Pass on the Tasks of a TaskQueue that is this installation's, or nobody's, now."""
        self._ending.add(key)
        while key in self._ending and (kept := self.kept[key]):
            for uid in kept.hand_over_some(handler):
                del self._queues[uid]
            await asyncio.sleep(0)
        if key in self._ending:
            self._ending.discard(key)
            del self.kept[key]
