"""The operator's half of `taskqueue dev`: its controller of Tasks, over a `MemoryApi`.

It takes the part of the engine: it shows the controller what changes, as an informer does (finished
Tasks leave), and serves every TaskQueue there is. Pools, conditions and times to live have no
counterpart here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from pydantic import ValidationError

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.publisher import Publisher
from taskqueue.api.common import TASK_PLURAL, TASKQUEUE_PLURAL
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import routing_key
from taskqueue.contract.outgoing import dead_letter
from taskqueue.controller.background import Background
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.dev.memory_api import Change, MemoryApi, Object
from taskqueue.dev.memory_broker import MemoryBroker
from taskqueue.dev.memory_client import MemoryClient
from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.kubernetes.taskqueue_codec import read_queue
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.task import Phase
from taskqueue.model.token import TokenKeys

log = EventLog(__name__)

#: How long statuses may still be written at the end, in seconds.
_DRAIN_SECONDS = 1.0


class LocalOperator:
    """Follows the objects of a `MemoryApi`, and dispatches their Tasks to a `MemoryBroker`.

    Args:
        api: has the objects.
        on_queue: called with each TaskQueue that is new or changed, to have it served by workers.
        on_dead_letter: called with the routing key and the properties of each dead letter.
    """

    def __init__(
        self,
        api: MemoryApi,
        *,
        on_queue: Callable[[QueueConfig], None],
        on_dead_letter: Callable[[str, Any], None] = lambda key, properties: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._api = api
        self._on_queue = on_queue
        self._background = Background()
        self._uids: dict[tuple[str, str], str] = {}
        self._queues: dict[QueueKey, QueueConfig] = {}
        #: Whether what an earlier process may have published is known.
        self._synced = False
        client = cast(ApiClient, MemoryClient(api))
        self._updater = StatusUpdater(client)
        self.broker = MemoryBroker(loop, on_inbox=self._on_inbox, on_dead_letter=on_dead_letter)
        self._source = _Source(self.broker)
        self.tasks = TaskController(
            client=client,
            updater=self._updater,
            tokens=TokenKeys(current="dev", keys={"dev": os.urandom(32)}),
            listener=self,
            uid_of=self._uids.get,
            synced=lambda: self._synced,
            leads=lambda: True,
            random=Random(),  # noqa: S311
            spawn=self._background.spawn,
        )
        api.listeners.append(lambda change: loop.call_soon(self._on_change, change))

    async def run(self) -> None:
        """Serve until cancelled."""
        for plural in (TASKQUEUE_PLURAL, TASK_PLURAL):
            for one in self._api.objects(plural):
                self._on_change(("ADDED", plural, one))
        self._synced = True
        await self._updater.run()

    async def close(self) -> None:
        """Dispatch nothing more, and write what is known of the Tasks."""
        self.tasks.close()
        await self._updater.drain(_DRAIN_SECONDS)
        await self._background.cancel()

    def queue_status(self, key: QueueKey) -> Object:
        """Return what a TaskQueue's status says of its Tasks."""
        dispatcher = self.tasks.dispatcher(key)
        ready = self.broker.ready(routing_key(*key))
        return {
            "pending": dispatcher.waiting,
            "ready": ready,
            "running": max(dispatcher.published - ready, 0),
            "replicas": 1,
        }

    # The informers' part.

    def _on_change(self, change: Change) -> None:
        event, plural, one = change
        metadata = one["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if plural == TASKQUEUE_PLURAL:
            self._on_queue_changed(key, None if event == "DELETED" else one)
        elif plural == TASK_PLURAL:
            ended = Phase((one.get("status") or {}).get("phase", Phase.PENDING)).terminal
            if event != "DELETED" and not ended:
                self._uids[key] = metadata["uid"]
                self.tasks.on_upserted(one)
            elif self._uids.pop(key, None) is not None:
                self.tasks.on_deleted(key, metadata["uid"], metadata)

    def _on_queue_changed(self, key: QueueKey, raw: Object | None) -> None:
        dispatcher = self.tasks.dispatcher(key)
        try:
            config = None if raw is None else read_queue(raw)
        except ValidationError as error:
            log.error("queue.unreadable", queue="/".join(key), error=str(error))
            return
        dispatcher.config = config
        if config is None:
            self._queues.pop(key, None)
            dispatcher.close()
        else:
            self._queues[key] = config
            if dispatcher.publisher is None:
                dispatcher.open(self.broker.publisher)
            self._on_queue(config)
        self.tasks.on_queue_changed(key)

    # The broker links' part.

    def _on_inbox(self, delivery: Delivery) -> None:
        self.tasks.inbox.on_delivery(delivery, self._source)

    # The engine's part: `TaskListener`.

    def has_queue(self, key: QueueKey) -> bool:
        """All TaskQueues are served."""
        return key in self._queues

    def uses_broker(self, key: QueueKey, broker: object) -> bool:
        """There is one broker."""
        return True

    def on_heartbeat(self, heartbeat: Heartbeat, *, proven: bool) -> None:
        """Take note of the slots and handlers of a worker."""
        dispatcher = self.tasks.dispatcher((heartbeat.namespace, heartbeat.queue))
        dispatcher.slots = heartbeat.slots
        dispatcher.on_handlers_registered(heartbeat.handlers)

    def on_direct_end(self, key: QueueKey, exchange: str) -> None:
        """Nobody counts direct messages."""

    def on_task_ended(self, tracked: TrackedTask) -> None:
        """Its final status is an object's change like any other."""

    def on_completion_published(self, tracked: TrackedTask) -> None:
        """Nobody waits for it."""

    def on_end_missed(self, key: QueueKey, uid: str, *, dropped: bool) -> None:
        """There is no archive."""

    def on_commands_owed(self) -> None:
        """The broker is never away."""

    def on_status_refused(self, tracked: TrackedTask, why: str) -> None:
        """Say what nobody else would."""
        log.error("status.refused", task=tracked.task.path, error=why)


@dataclass(frozen=True)
class _Source:
    """Where the inbox's messages come from: a `MessageSource`."""

    broker: MemoryBroker

    @property
    def publisher(self) -> Publisher | None:
        return self.broker.publisher

    def dead_letter_delivery(self, delivery: Delivery, reason: str) -> None:
        namespace, _, queue = delivery.routing_key.partition(".")
        message = dead_letter(
            delivery.properties,
            delivery.body,
            exchange=delivery.exchange,
            namespace=namespace,
            queue=queue.partition(".")[0],
            reason=reason,
        )
        self.broker.publisher.publish(
            message.exchange,
            message.key,
            message.body,
            message.properties(),
            lambda verdict, text: None,
        )
