"""Finished TaskBatches, which are deleted when their time to live is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from taskqueue.kubernetes.batch_codec import batch_path
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.logs import EventLog
from taskqueue.model.batch import Batch, BatchState
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Deleted in one turn, at most; what fails is tried again with the next, some seconds later.
_DELETES_A_TURN = 10
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 15.0


@dataclass(slots=True)
class _Finished:
    namespace: str
    name: str
    queue: QueueKey
    completed: float
    ttl: int | None
    not_before: float = 0.0


class FinishedBatches:
    """Deletes finished batches after their time to live; holds each with some 200 bytes.

    Args:
        client: for the API server.
        clock: wall time in seconds.
        default_ttl: returns that of a TaskQueue, for batches without one of their own.
    """

    def __init__(
        self, client: ApiClient, *, clock: Clock, default_ttl: Callable[[QueueKey], int | None]
    ) -> None:
        self._client = client
        self._clock = clock
        self._default_ttl = default_ttl
        self._finished: dict[str, _Finished] = {}

    def put(self, batch: Batch, state: BatchState) -> None:
        """Take a batch that has ended."""
        if state.completion_time is not None and not batch.deleting:
            self._finished[batch.uid] = _Finished(
                batch.namespace,
                batch.name,
                batch.queue_key,
                state.completion_time,
                batch.ttl_seconds,
            )

    def discard(self, uid: str) -> None:
        """Forget a batch that was deleted."""
        self._finished.pop(uid, None)

    async def run(self) -> None:
        """Delete what is due until cancelled."""
        while True:
            await self.delete_due()
            await asyncio.sleep(_LOOK_SECONDS)

    async def delete_due(self) -> None:
        """Delete those whose time is over, a few."""
        now = self._clock()
        due = [(uid, one) for uid, one in self._finished.items() if self._is_due(one, now)]
        for uid, one in due[:_DELETES_A_TURN]:
            try:
                await self._client.send(
                    "DELETE",
                    batch_path(one.namespace, one.name),
                    body={
                        "apiVersion": "v1",
                        "kind": "DeleteOptions",
                        "preconditions": {"uid": uid},
                    },
                )
            except ApiError as error:
                if error.status not in (404, 409):  # it is deleted, or another has its name
                    one.not_before = now + _RETRY_SECONDS
                    path = f"{one.namespace}/{one.name}"
                    log.warning("batch.not_deleted", batch=path, error=str(error))
                    continue
            self._finished.pop(uid, None)

    def _is_due(self, one: _Finished, now: float) -> bool:
        ttl = self._default_ttl(one.queue) if one.ttl is None else one.ttl
        return ttl is not None and now >= max(one.completed + ttl, one.not_before)
