"""Publishes the ends of Tasks; where there is an archive, with all that its row has.

What a row has and a Task's state does not comes from the object's metadata, which each write of a
status is answered with. A payload that is to be kept is read from the object, one request for each
Task: of a Task that is deleted meanwhile it is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from taskqueue.amqp.publisher import Publisher
from taskqueue.contract.completion import archive_record
from taskqueue.controller.completions.publisher import CompletionPublisher, OnPublished
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import read_payload, task_path
from taskqueue.kubernetes.task_origin import origin_of
from taskqueue.logs import EventLog
from taskqueue.model.queue import ArchiveConfig
from taskqueue.model.task import Task, TaskState

log = EventLog(__name__)

#: Payloads read at once, and how long one is tried, in seconds.
_READS_AT_ONCE = 8
_TRIES, _PAUSE_SECONDS = 3, 1.0


class TaskEnds:
    """Publishes the ends of Tasks, with what an archive keeps of them if there is one.

    Args:
        completions: publishes the events.
        client: for the API server.
        spawn: runs reads beside everything else.
    """

    def __init__(
        self,
        completions: CompletionPublisher,
        *,
        client: ApiClient,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._completions = completions
        self._client = client
        self._spawn = spawn
        self._places = asyncio.Semaphore(_READS_AT_ONCE)

    def publish(
        self,
        task: Task,
        status: TaskState,
        metadata: Mapping[str, Any] | None,
        archive: ArchiveConfig | None,
        *,
        reported: bool,
        publisher: Callable[[], Publisher | None],
        on_published: OnPublished | None = None,
    ) -> None:
        """Publish the event of a final status, now or when its payload is read.

        Args:
            task: that has ended.
            status: how.
            metadata: of its object; None: not known.
            archive: of its TaskQueue; None: it has none.
            reported: as of `CompletionPublisher.publish_event`.
            publisher: returns what the broker is reached by at that time.
            on_published: as of `CompletionPublisher.publish_event`.
        """

        def publish(payload: bytes | None) -> None:
            record = None
            if archive is not None:
                origin = origin_of(metadata, cancelled=task.spec.cancel)
                record = archive_record(task, status, origin, payload)
            self._completions.publish_task(
                task,
                status,
                reported=reported,
                publisher=publisher(),
                on_published=on_published,
                record=record,
            )

        async def read_and_publish() -> None:
            publish(await self._read_payload(task))

        if archive is not None and archive.keep_payloads:
            self._spawn(read_and_publish(), f"payload of {task.path}")
        else:
            publish(None)

    async def _read_payload(self, task: Task) -> bytes | None:
        path = task_path(task.namespace, task.name)
        for _ in range(_TRIES):
            try:
                async with self._places:
                    raw = await self._client.get(path)
                return read_payload(raw) if raw["metadata"]["uid"] == task.uid else None
            except ApiError as error:
                if error.status == 404:
                    return None
                problem = str(error)
                await asyncio.sleep(error.retry_after or _PAUSE_SECONDS)
            except (ValueError, KeyError, TypeError) as error:
                problem = str(error)
                break
        log.warning(
            "archive.payload_unread",
            namespace=task.namespace,
            task=task.name,
            uid=task.uid,
            error=problem,
        )
        return None
