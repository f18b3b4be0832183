"""The sinks of all TaskQueues: which ends are safe, and which finished Tasks may be deleted.

A sink is what gets every end of a TaskQueue's Tasks from an outbox of its own: its archive, and
each of its webhooks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskqueue.backoff import Backoff
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.queues.archiver import Archiver
from taskqueue.controller.queues.backfill import Backfill
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.missed_ends import publish_missed_ends
from taskqueue.controller.queues.webhook_sender import WebhookSender
from taskqueue.controller.queues.webhooks import MissedEnds, QueueWebhooks
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueConfig, QueueKey
from taskqueue.timestamps import Clock

log = EventLog(__name__)

OnRecorded = Callable[[Sequence[FinishedTask]], None]


@dataclass(frozen=True, slots=True)
class QueueSinks:
    """The sinks of one TaskQueue."""

    archiver: Archiver
    webhooks: QueueWebhooks

    def set_on_change(self, on_change: Callable[[], None]) -> None:
        """Have this called when a condition is another one."""
        self.archiver.loop.on_change = self.webhooks.on_change = on_change

    def conditions(self, config: QueueConfig) -> tuple[Condition, ...]:
        """Return the conditions of the sinks that the TaskQueue has."""
        return (*self.archiver.conditions(config), *self.webhooks.conditions())

    async def reconcile(self, config: QueueConfig, broker: BrokerSession) -> None:
        """Drain the outboxes of the sinks that the TaskQueue has."""
        await self.archiver.reconcile(config.archive, broker)
        await self.webhooks.reconcile(config.webhooks, broker)

    async def close(self) -> None:
        """Stop; what is not acknowledged stays in the outboxes."""
        await self.archiver.close()
        await self.webhooks.close()


@dataclass(slots=True)
class _Served:
    """A TaskQueue with a sink at least."""

    config: QueueConfig
    sinks: QueueSinks

    @property
    def is_archive_behind(self) -> bool:
        return self.config.archive is not None and self.sinks.archiver.backfill.is_behind

    @property
    def are_webhooks_behind(self) -> bool:
        backfill, missed = self.sinks.webhooks.backfill, self.sinks.webhooks.missed
        return bool(self.config.webhooks) and (backfill.is_behind or len(missed) > 0)


class Sinks:
    """Makes the sinks of each TaskQueue, and knows them all.

    Args:
        client: for the API server.
        installation: in names at the broker.
        ends: publishes ends that a sink does not have.
        on_recorded: called with finished Tasks that each sink has, or need not have.
        since: resource version up to which a former leader has dealt with everything.
        networks: that webhooks may be sent to.
        paths: of the lists that together have all Tasks.
        clock: wall time in seconds.

    Attributes:
        is_settled: whether what happened since then is known.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        installation: str,
        ends: TaskEnds,
        on_recorded: OnRecorded,
        since: str,
        networks: WebhookNetworks,
        paths: Sequence[str] = (TASKS_PATH,),
        clock: Clock = time.time,
    ) -> None:
        self._client = client
        self._paths = paths
        self._installation = installation
        self._ends = ends
        self._on_recorded = on_recorded
        self._clock = clock
        self._networks = networks
        #: Those of TaskQueues that have any.
        self._served: dict[QueueKey, _Served] = {}
        self._since = since
        self.is_settled = False

    def make(self, config: QueueConfig, dispatcher: Dispatcher) -> QueueSinks:
        """Return the sinks of a TaskQueue that has just become known."""
        key, missed = config.key, MissedEnds(config.key)

        def backfill(**more: object) -> Backfill:
            return Backfill(
                dispatcher=dispatcher,
                client=self._client,
                ends=self._ends,
                clock=self._clock,
                **more,  # type: ignore[arg-type]
            )

        archiver = Archiver(
            key,
            client=self._client,
            installation=self._installation,
            backfill=backfill(on_recorded=lambda tasks: self._on_archived(key, tasks)),
            clock=self._clock,
        )
        webhooks = QueueWebhooks(
            key,
            missed=missed,
            backfill=backfill(
                on_recorded=lambda tasks: self._on_passed_on(key, tasks),
                on_published=missed.discard,
                requested=False,
            ),
            make=lambda name: WebhookSender(
                name,
                key,
                client=self._client,
                installation=self._installation,
                networks=self._networks,
            ),
        )
        sinks = QueueSinks(archiver, webhooks)
        if config.has_sinks:
            self._served[key] = _Served(config, sinks)
        return sinks

    def on_reconfigured(self, config: QueueConfig, old: QueueConfig, sinks: QueueSinks) -> bool:
        """Take note that a TaskQueue is changed: it may have a sink now, or none any more.

        Returns:
            Whether other finished Tasks than before may be deleted.
        """
        if config.has_sinks:
            self._served[config.key] = _Served(config, sinks)
        else:
            self._served.pop(config.key, None)
        if config.archive is not None and config.archive != old.archive:
            sinks.archiver.backfill.request(behind=True)  # until there is an outbox
        elif config.policy.ttl_seconds != old.policy.ttl_seconds:
            sinks.archiver.backfill.request()  # to find what that is new for
        now, before = ((one.policy.ttl_seconds, one.archive, one.webhooks) for one in (config, old))
        return now != before

    def remove(self, key: QueueKey) -> None:
        """Take note that a TaskQueue is deleted."""
        self._served.pop(key, None)

    async def find_missed_ends(self, tasks: TaskController) -> None:
        """Publish the ends that a former leader may not have published."""
        backoff = Backoff()
        while self._served and not self.is_settled:
            try:
                await publish_missed_ends(
                    self._client,
                    self._since,
                    paths=self._paths,
                    tracked=tasks.tasks,
                    config_of=self._config_of,
                    publisher_of=lambda key: tasks.dispatcher(key).publisher,
                    ends=self._ends,
                    clock=self._clock,
                )
                break
            except ApiError as error:
                log.warning("ends.watch_failed", error=str(error))
                await asyncio.sleep(error.retry_after or backoff.next_delay())
        self.is_settled = True

    def _config_of(self, key: QueueKey) -> QueueConfig | None:
        """Return what a TaskQueue with a sink asks for; None: it has none."""
        served = self._served.get(key)
        return None if served is None else served.config

    def holds_finished(self, key: QueueKey) -> bool:
        """Return whether a list does not show which finished Tasks of a TaskQueue may be deleted.

        They are handed on when their ends are known to be safe: ``on_recorded``.
        """
        served = self._served.get(key)
        if served is None:
            return False
        return served.config.archive is not None or served.are_webhooks_behind

    def is_safe(self, key: QueueKey) -> bool:
        """Return whether an end whose event is confirmed is in each sink or its outbox.

        Where there is no sink, nobody needs it.
        """
        served = self._served.get(key)
        if served is None:
            return True
        return not (served.is_archive_behind or served.are_webhooks_behind)

    def on_end_missed(self, key: QueueKey, uid: str, *, dropped: bool) -> None:
        """Look soon for an end that may not have been passed on; ``dropped``: it was not."""
        served = self._served.get(key)
        if served is None:
            return
        if served.config.archive is not None:
            served.sinks.archiver.backfill.request(behind=dropped)
        if served.config.webhooks:
            served.sinks.webhooks.missed.add(uid)
            served.sinks.webhooks.backfill.request(behind=dropped)

    def _on_archived(self, key: QueueKey, tasks: Sequence[FinishedTask]) -> None:
        """Hand Tasks that the archive has to their time to live, if no webhook lacks them."""
        served = self._served.get(key)
        if served is not None and served.config.webhooks:
            missed = served.sinks.webhooks.missed
            tasks = [one for one in tasks if one.uid not in missed]
        self._on_recorded(tasks)

    def _on_passed_on(self, key: QueueKey, tasks: Sequence[FinishedTask]) -> None:
        """Hand Tasks that no webhook lacks to their time to live; not before an archive has them.

        The backfill of an archive that is behind finds them, too.
        """
        served = self._served.get(key)
        if served is None or not served.is_archive_behind:
            self._on_recorded(tasks)
