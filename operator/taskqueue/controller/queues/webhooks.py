"""The webhooks of one TaskQueue: their senders, and what becomes of ends that none could be passed.

An outbox that is full refuses an end, and the broker does not say which one that was. The Task is
remembered here until it has been published again, and kept in the API server until then. What is
remembered is lost with this process: then such an end reaches no webhook.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from taskqueue.controller.queues.backfill import Backfill
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.conditions.sink_state import SinkState
from taskqueue.controller.queues.conditions.webhooks_delivered import (
    WebhookState,
    webhooks_delivered,
)
from taskqueue.controller.queues.webhook_sender import WebhookSender
from taskqueue.controller.tasks.dispatcher import do_nothing
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueKey
from taskqueue.model.webhook import WebhookConfig

log = EventLog(__name__)

#: Ends of a TaskQueue that are remembered, about 100 bytes each.
MOST_MISSED = 100_000


class MissedEnds:
    """The Tasks whose ends were not passed on to the webhooks, by uid.

    Args:
        key: (namespace, name) of the TaskQueue, for the log.
    """

    def __init__(self, key: QueueKey) -> None:
        self._key = key
        self._uids: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._uids)

    def __contains__(self, uid: str) -> bool:
        return uid in self._uids

    def add(self, uid: str) -> None:
        """Remember a Task; of too many, the one that was missed first is given up."""
        self._uids[uid] = None
        if len(self._uids) > MOST_MISSED:
            lost = next(iter(self._uids))
            del self._uids[lost]
            namespace, queue = self._key
            log.error("webhook.end_lost", namespace=namespace, queue=queue, uid=lost)

    def discard(self, uid: str) -> None:
        """Forget a Task: its end is about to be published again."""
        self._uids.pop(uid, None)

    async def missing(self, uids: Iterable[str]) -> set[str]:
        """Return those of these that were missed."""
        return {uid for uid in uids if uid in self._uids}


class QueueWebhooks:
    """Makes a sender of each webhook, and publishes again what they have missed.

    Args:
        key: (namespace, name) of the TaskQueue.
        missed: the ends that were not passed on.
        backfill: publishes them again.
        make: makes the sender of a webhook of this name.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        missed: MissedEnds,
        backfill: Backfill,
        make: Callable[[str], WebhookSender],
    ) -> None:
        #: Called when a state is another one; set by whoever serves the TaskQueue.
        self.on_change: Callable[[], None] = do_nothing
        self.missed = missed
        self.backfill = backfill
        self._key = key
        self._make = make
        self._senders: dict[str, WebhookSender] = {}
        self._waiting: dict[str, int | None] = {}
        self._backfilling: asyncio.Task[None] | None = None

    def conditions(self) -> tuple[Condition, ...]:
        """Return WebhooksDelivered, if the TaskQueue has a webhook."""
        states = [
            WebhookState(name, one.loop.state or SinkState(), self._waiting.get(name))
            for name, one in self._senders.items()
        ]
        return webhooks_delivered(states, is_behind=self.backfill.is_behind)

    async def reconcile(self, configs: Sequence[WebhookConfig], broker: BrokerSession) -> None:
        """Send to the webhooks that there are now.

        Args:
            configs: what the TaskQueue asks for.
            broker: of the TaskQueue: has an outbox when it is declared.
        """
        for name in self._senders.keys() - {config.name for config in configs}:
            await self._senders.pop(name).loop.close()
            self._waiting.pop(name, None)
        for config in configs:
            sender = self._senders.get(config.name)
            if sender is None:
                sender = self._senders[config.name] = self._make(config.name)
                sender.loop.on_change = lambda: self.on_change()
            self._waiting[config.name] = broker.outbox_waiting(sender.sink)
            await sender.loop.reconcile(config, broker.outbox_connection(sender.sink))
        counts = list(self._waiting.values())
        known = [count for count in counts if count is not None]
        self.backfill.waiting = max(known) if known and len(known) == len(counts) else None
        if self._senders and self._backfilling is None:
            self._backfilling = asyncio.create_task(
                self.backfill.run(self.missed), name=f"missed ends of {'/'.join(self._key)}"
            )

    async def close(self) -> None:
        """Stop; what is not acknowledged stays in the outboxes."""
        backfilling, self._backfilling = self._backfilling, None
        if backfilling is not None:
            backfilling.cancel()
            await asyncio.gather(backfilling, return_exceptions=True)
        for sender in self._senders.values():
            await sender.loop.close()
