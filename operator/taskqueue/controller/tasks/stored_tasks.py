"""Counts the finished Tasks of namespaces, to warn before they fill etcd.

Contract:

* Nothing is kept for a Task, and nothing is listed. The API server says with the first Task of a
  list how many follow: one request a minute for the cluster, or for each namespace of a list, and
  one for each namespace with a TaskQueue while there are enough finished Tasks for one of them to
  have many.
* What is unfinished is known to this operator. Both numbers are of slightly different moments.
* A namespace has many from the threshold on, and until it is below nine tenths of it.
* A count that fails changes nothing. The next one comes a minute later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from taskqueue.api.common import GROUP, VERSION
from taskqueue.controller.metrics import TASKS_STORED
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.kubernetes.client import METADATA_LIST, ApiClient, ApiError
from taskqueue.kubernetes.pages import OBJECTS
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey

log = EventLog(__name__)

#: From one count to the next, in seconds.
COUNT_SECONDS = 60.0
#: Part of the threshold below which a namespace that had many has few again.
_FEW = 0.9


class StoredTasks:
    """Counts stored Tasks each minute, while `run` is running.

    Args:
        client: for the API server.
        unfinished: returns the unfinished Tasks.
        queues: returns the TaskQueues, whose namespaces are counted.
        threshold: so many finished Tasks of a namespace are many.
        paths: of the lists that together have all Tasks.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        unfinished: Callable[[], Mapping[str, TrackedTask]],
        queues: Callable[[], Iterable[QueueKey]],
        threshold: int,
        paths: Sequence[str] = (TASKS_PATH,),
    ) -> None:
        self._client = client
        self._paths = paths
        self._unfinished = unfinished
        self._queues = queues
        self._threshold = threshold
        #: Namespaces with many finished Tasks, and how many; None: not counted yet.
        self._many: dict[str, int] | None = None

    def many_finished(self, namespace: str) -> int | None:
        """Return the number of finished Tasks if a namespace has many.

        Returns:
            0 if it has few, None while it is unknown.
        """
        return None if self._many is None else self._many.get(namespace, 0)

    async def run(self, *, after: asyncio.Event) -> None:
        """Count until cancelled, once ``after`` is set: all unfinished Tasks are known."""
        await after.wait()
        while True:
            try:
                await self.count()
            except ApiError as error:
                log.warning("tasks.count_failed", error=str(error))
            except Exception as error:  # whatever is answered, a warning that is late stops nobody
                log.error("tasks.count_failed", exc_info=error)
            await asyncio.sleep(COUNT_SECONDS)

    async def count(self) -> None:
        """Count once.

        Raises:
            ApiError: the API server could not be asked, or does not say how many there are.
        """
        stored = sum([await self._stored(path) for path in self._paths])
        TASKS_STORED.set(stored)
        unfinished = self._unfinished()
        many: dict[str, int] = {}
        if stored - len(unfinished) >= _FEW * self._threshold:
            held = Counter(tracked.task.namespace for tracked in unfinished.values())
            for namespace in sorted({namespace for namespace, _ in self._queues()}):
                path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks"
                finished = await self._stored(path) - held[namespace]
                had_many = bool(self.many_finished(namespace))
                if finished >= self._threshold * (_FEW if had_many else 1):
                    many[namespace] = finished
        self._many = many

    async def _stored(self, path: str) -> int:
        """Return the number of Tasks below a path."""
        # Without a selector, or the API server does not say how many follow.
        page = await self._client.request(
            "GET", path, params={"limit": "1"}, accept=METADATA_LIST, levels=OBJECTS.levels
        )
        following = page["metadata"].get("remainingItemCount") or 0
        if page["metadata"].get("continue") and not following:
            raise ApiError(0, "NotCounted", f"the list of {path} does not say how many follow")
        return len(page["items"] or ()) + int(following)  # null: there are none
