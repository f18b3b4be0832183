"""The engine: every TaskQueue and every unfinished Task, and the loops that serve them.

Tasks come from a `TaskFeed`, TaskQueues from `Engine.put_queue`, worker Deployments from an
informer of their own, outcomes from the broker links. The engine only connects the parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.controller.background import Background, never_ends
from taskqueue.controller.completions.kubernetes_events import EventRecorder
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.metrics import count_write_failure, remove_queue_metrics, report_statuses
from taskqueue.controller.pool.own_deployment import DeploymentListener
from taskqueue.controller.queues.broker_links import BrokerLinks
from taskqueue.controller.queues.claims import QueueClaims, installation_id
from taskqueue.controller.queues.conditions.reported import reported
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.queues.queue_list import list_queues
from taskqueue.controller.queues.reconciler import QueueReconciler
from taskqueue.controller.queues.sinks import Sinks
from taskqueue.controller.queues.sizing_conflict import sizing_conflict
from taskqueue.controller.queues.statistics import StatisticsReaders
from taskqueue.controller.queues.throughput import Totals
from taskqueue.controller.queues.user_sweeper import UserSweeper, managed
from taskqueue.controller.tasks.command_record import CommandRecord
from taskqueue.controller.tasks.dispatcher import do_nothing
from taskqueue.controller.tasks.stored_tasks import StoredTasks
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.controller.tasks.task_feed import TaskFeed
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.controller.tasks.ttl import TtlController
from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.kubernetes import deployments
from taskqueue.kubernetes.client import ApiAccess, ApiClient, ApiError
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.event_api import EventWriter
from taskqueue.kubernetes.informer import identity
from taskqueue.kubernetes.informer_group import InformerGroup
from taskqueue.kubernetes.ownership import MANAGED_BY
from taskqueue.kubernetes.shared_client import SharedApiClient
from taskqueue.kubernetes.status_updater import CONCURRENCY, StatusUpdater
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.kubernetes.taskqueue_codec import QUEUES_PATH, read_installation, read_queue
from taskqueue.kubernetes.watch_scope import EVERYWHERE, WatchScope
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import from_rfc3339

log = EventLog(__name__)

#: How long statuses may still be written after the engine is stopped.
_DRAIN_SECONDS = 5.0
#: How long their completion events may still be published then.
_COMPLETIONS_SECONDS = 2.0
#: Connections for reading what Tasks need: payloads, ConfigMaps, dependencies, Tasks that left.
_READERS = 32


class Engine:
    """Connects the parts of the operator; the `TaskListener` of the Tasks.

    Args:
        access: of the API server.
        tokens: sign and judge attempts.
        namespace: where the operator runs.
        installation: in names at the broker.
        instance: which operator this is, for Kubernetes Events.
        conditions: what holds for those of all TaskQueues; None: the defaults.
        leads: returns whether this process certainly still leads.
        since: resource version up to which a former leader has dealt with everything.
        feed: shows the Tasks, and may have done so for long.
        is_kept: returns whether a finished Task of this namespace and name must stay for now.
        scope: the namespaces that are served, those of the feed.
        networks: that webhooks may be sent to.
    """

    def __init__(
        self,
        access: ApiAccess,
        tokens: TokenKeys,
        *,
        feed: TaskFeed,
        namespace: str,
        installation: str = DEFAULT_INSTALLATION,
        instance: str = "",
        conditions: ConditionSettings | None = None,
        leads: Callable[[], bool] = lambda: True,
        is_kept: Callable[[QueueKey], bool] = lambda _: False,
        scope: WatchScope = EVERYWHERE,
        since: str = "",
        networks: WebhookNetworks = WebhookNetworks(),  # noqa: B008  (frozen)
    ) -> None:
        self._scope = scope
        random = Random()  # noqa: S311  (jitter, not secrets)
        self._client = SharedApiClient(access, may_write=leads)
        self._reader_client = SharedApiClient(access, max_connections=_READERS, may_write=leads)
        self._writer_client = ApiClient(access, max_connections=CONCURRENCY, may_write=leads)
        pools = scope.paths(deployments.DEPLOYMENTS_PATH)
        self._feed_client = ApiClient(
            access, max_connections=1 + len(pools), timeout_seconds=60, may_write=leads
        )
        self._writer = StatusUpdater(self._writer_client, on_failure=count_write_failure)
        report_statuses(self._writer)
        self._conditions = conditions or ConditionSettings(operator_namespace=namespace)
        self._installation = installation
        self._claims = QueueClaims(self._client, installation_id(namespace, installation))
        self._drain_seconds = _DRAIN_SECONDS
        self._controllers: dict[QueueKey, tuple[QueueReconciler, asyncio.Task[None]]] = {}
        #: Whether all TaskQueues that existed at the start are known.
        self._queues_listed = False
        self._pool_states: dict[QueueKey, PoolState] = {}
        self._background = Background()
        self._spawn = self._background.spawn
        self._tasks_feed = feed
        self.tasks = TaskController(
            client=self._reader_client,
            updater=self._writer,
            tokens=tokens,
            listener=self,
            uid_of=feed.uid_of,
            synced=feed.synced.is_set,
            leads=leads,
            random=random,
            spawn=self._spawn,
        )
        self._deployments = InformerGroup(
            self._feed_client,
            pools,
            DeploymentListener(self.on_pool_state),
            selectors={"labelSelector": ",".join(f"{k}={v}" for k, v in MANAGED_BY.items())},
            random=random,
        )
        self._ttl = TtlController(
            self._client,
            clock=time.time,
            ttl_of=self._ttl_of,
            is_needed=lambda *key: is_kept(key) or self.tasks.dependencies.is_needed(key),
            paths=scope.paths(TASKS_PATH),
            is_held=lambda key: self._sinks.holds_finished(key) or self._claims.has_other(key),
        )
        self._sinks = Sinks(
            client=self._client,
            installation=installation,
            ends=self.tasks.ends,
            on_recorded=self._ttl.add_safe,
            since=since,
            networks=networks,
            paths=scope.paths(TASKS_PATH),
        )
        self._stored = StoredTasks(
            self._client,
            unfinished=lambda: self.tasks.tasks,
            queues=self._controllers.keys,
            threshold=self._conditions.many_finished_tasks,
            paths=scope.paths(TASKS_PATH),
        )
        self._events = EventRecorder(EventWriter(self._client, instance=instance), clock=time.time)
        self._links = BrokerLinks(
            installation=installation,
            feed_synced=feed.synced,
            random=random,
            on_message=self.tasks.inbox.on_delivery,
            spawn=self._spawn,
        )
        self._readers = StatisticsReaders(spawn=self._spawn)
        self._sweeper = UserSweeper(
            installation, lambda: managed(self._controllers) if self._queues_listed else None
        )
        self._commands = CommandRecord(
            self._client,
            namespace=namespace,
            installation=installation,
            owed=self.tasks.owed_commands,
            restore=self._restore_commands,
        )

    @property
    def ready(self) -> bool:
        """Whether all objects that existed at the start are known."""
        return self._tasks_feed.synced.is_set() and self._deployments.synced.is_set()

    async def run(self) -> None:
        """Serve until cancelled, then write the remaining statuses."""
        writer = asyncio.create_task(self._writer.run(), name="status writer")
        try:
            # kopf lists the TaskQueues as well, but does not say when it has shown them all.
            # Without this LIST the first Tasks would be Blocked with QueueNotFound meanwhile.
            paths = self._scope.paths(QUEUES_PATH)
            self._queues_listed = await list_queues(self._client, paths, self.put_queue)
            self._ttl.list_all()
            async with asyncio.TaskGroup() as group:
                group.create_task(never_ends(writer), name="watch of the status writer")
                group.create_task(self._lead(group), name="takeover")
                group.create_task(self._deployments.run(), name="feed of Deployments")
                group.create_task(self.tasks.dependencies.run(), name="dependencies")
                group.create_task(self._ttl.run(after=self._tasks_feed.synced), name="time to live")
                group.create_task(self._stored.run(after=self._tasks_feed.synced), name="counts")
                group.create_task(self._events.run(), name="Kubernetes Events")
                group.create_task(self._commands.run(), name="record of commands")
        finally:
            await self._stop(writer)

    async def _lead(self, group: asyncio.TaskGroup) -> None:
        await self._tasks_feed.lead(self.tasks)
        group.create_task(self._tasks_feed.run(), name="feed of Tasks")
        await self._sinks.find_missed_ends(self.tasks)

    @property
    def is_settled(self) -> bool:
        """Whether each end of a Task that is not brand-new is where it has to go."""
        return self._sinks.is_settled and self.tasks.completions.is_idle

    def skip_unwritten(self) -> None:
        """Do not write the remaining statuses when stopping: another leader will."""
        self._drain_seconds = 0.0

    # TaskQueues.

    def put_queue(self, raw: Mapping[str, Any]) -> None:
        """Add or change a TaskQueue.

        Raises:
            pydantic.ValidationError: it does not follow the schema.
        """
        config = read_queue(raw)
        if self._claims.is_others(raw):
            self._leave_queue(config.key, config.uid, read_installation(raw))
            return
        if self._claims.pop_other(config.key):
            self.tasks.take_queue(config.key)
            self._ttl.list_all()
        running = self._controllers.get(config.key)
        if running is not None and running[0].config.uid == config.uid:
            controller, old = running[0], running[0].config
            controller.reconfigure(config)
            if self._claims.is_held(config.uid) and not self._claims.is_known(raw):  # cleared
                self._spawn(self._claim(config), f"claim of {config.namespace}/{config.name}")
            if config.policy.active_deadline_seconds != old.policy.active_deadline_seconds:
                self.tasks.on_queue_changed(config.key)
            if self._sinks.on_reconfigured(config, old, controller.sinks):
                self._ttl.on_queue_changed(config.key)
            return
        if running is not None:
            self.remove_queue(config.key, running[0].config.uid)
        dispatcher = self.tasks.dispatcher(config.key)
        dispatcher.config = config
        controller = QueueReconciler(
            config,
            Totals.read(raw),
            dispatcher=dispatcher,
            client=self._client,
            links=self._links.get,
            clock=time.time,
            created=from_rfc3339(raw["metadata"]["creationTimestamp"]),
            on_deleted=lambda: self.remove_queue(config.key, config.uid),
            on_condition=lambda condition: self._events.on_condition(
                config.key, config.uid, reported(condition)
            ),
            readers=self._readers,
            sweeper=self._sweeper,
            many_finished=self._stored.many_finished,
            condition_settings=self._conditions,
            installation=self._installation,
            on_declared=self._on_queue_declared,
            sinks=self._sinks.make(config, dispatcher),
            sizing_conflict=self._sizing_conflict,
        )
        task = self._spawn(
            self._run_reconciler(controller), f"TaskQueue {config.namespace}/{config.name}"
        )
        task.add_done_callback(lambda _: self._links.close_unused())
        self._controllers[config.key] = (controller, task)
        self.tasks.on_queue_changed(config.key)
        self._ttl.on_queue_changed(config.key)
        log.info("queue.added", namespace=config.namespace, queue=config.name)

    def remove_queue(self, key: QueueKey, uid: str) -> None:
        """Remove a deleted TaskQueue; its Tasks wait until it is created again."""
        # A new one of that name may be known before the former's deletion: their uids differ.
        if self._claims.discard(key, uid):
            self.tasks.take_queue(key)
            self._ttl.list_all()
        elif self.serves(key, uid):
            self._stop_serving(key)
            log.info("queue.deleted", namespace=key[0], queue=key[1])

    def _stop_serving(self, key: QueueKey) -> None:
        _, running = self._controllers.pop(key)
        running.cancel()
        dispatcher = self.tasks.dispatcher(key)
        dispatcher.close()
        dispatcher.config = None
        dispatcher.on_backlog = dispatcher.on_missing = do_nothing
        remove_queue_metrics(key)
        self._sinks.remove(key)
        self._events.remove_queue(key)
        self.tasks.on_queue_changed(key)
        self._on_queue_declared()

    def serves(self, key: QueueKey, uid: str) -> bool:
        """Return whether it serves this very TaskQueue, not another one of its name."""
        controller = self._controller(key)
        return controller is not None and controller.config.uid == uid

    def knows(self, raw: Mapping[str, Any]) -> bool:
        """Return whether nothing of a TaskQueue is new: neither its spec nor who serves it."""
        (key, uid), generation = identity(raw), raw["metadata"].get("generation")
        one = self._controller(key)
        same = one is not None and (one.config.uid, one.config.generation) == (uid, generation)
        return self._claims.is_known(raw) and (same or self._claims.is_others(raw))

    def _leave_queue(self, key: QueueKey, uid: str, installation: str) -> None:
        """Leave a TaskQueue and its Tasks alone: another installation serves it."""
        if self._claims.add_other(key, uid, installation):
            self.tasks.leave_queue(key)
            if key in self._controllers:
                self._stop_serving(key)
            self._events.on_served_elsewhere(key, uid, installation)

    async def _claim(self, config: QueueConfig) -> None:
        """Claim a TaskQueue; it is left if another installation has it."""
        installation = await self._claims.claim(config.key, config.uid)
        if installation and self.serves(config.key, config.uid):
            if not self._claims.is_held(config.uid):
                self._leave_queue(config.key, config.uid, installation)
        else:
            self.remove_queue(config.key, config.uid)

    def _on_queue_declared(self) -> None:
        """Give up the events of all others, once each TaskQueue has bindings of its own.

        The inboxes of an older operator are bound for every key. As long as a TaskQueue cannot be
        declared they stay so: it may be at any of the brokers, with workers that report.
        """
        if self._queues_listed and all(one.is_bound for one, _ in self._controllers.values()):
            self._links.unbind_all_keys()

    async def _run_reconciler(self, controller: QueueReconciler) -> None:
        # A pool whose size is not known yet must not be resized.
        await self._deployments.synced.wait()
        await self._tasks_feed.synced.wait()
        await self._claim(controller.config)
        if self._claims.is_held(controller.config.uid):
            controller.pool.on_deployment_state(self._pool_states.get(controller.config.key))
            await controller.run()

    def _sizing_conflict(self, config: QueueConfig) -> str:
        """Return why a TaskQueue must not size what it refers to; "": it may."""
        everyone = [(one.created, one.config) for one, _ in self._controllers.values()]
        return sizing_conflict(config, everyone, own_pools=self._pool_states)

    def _controller(self, key: QueueKey) -> QueueReconciler | None:
        running = self._controllers.get(key)
        return None if running is None else running[0]

    def _ttl_of(self, key: QueueKey) -> int | None:
        controller = self._controller(key)
        return None if controller is None else controller.config.policy.ttl_seconds

    # Worker pools.

    def on_pool_state(self, key: QueueKey, state: PoolState | None) -> None:
        """Record what a worker Deployment reports; None: it is deleted."""
        if state is None:
            self._pool_states.pop(key, None)
        else:
            self._pool_states[key] = state
        controller = self._controller(key)
        if controller is not None:
            controller.pool.on_deployment_state(state)
            controller.request_reconcile()

    # Events of the Tasks.

    def has_queue(self, key: QueueKey) -> bool:
        """Return whether this operator serves a TaskQueue, or may do so."""
        return key in self._controllers or not self._queues_listed

    def uses_broker(self, key: QueueKey, broker: object) -> bool:
        """Return whether a TaskQueue uses this broker."""
        controller = self._controller(key)
        return controller is not None and controller.uses_broker(broker)

    def on_direct_end(self, key: QueueKey, exchange: str) -> None:
        """Note by which exchange direct messages come."""
        if (controller := self._controller(key)) is not None:
            controller.on_direct_end(exchange)

    def on_heartbeat(self, heartbeat: Heartbeat, *, proven: bool) -> None:
        """Register a worker's heartbeat."""
        if (controller := self._controller((heartbeat.namespace, heartbeat.queue))) is not None:
            controller.on_heartbeat(heartbeat, proven=proven)

    def on_task_ended(self, tracked: TrackedTask) -> None:
        """Count a Task, and record an Event if it failed or was cancelled."""
        task, status = tracked.task, tracked.status
        if task.index is None:
            self._events.on_task_ended(task, status)
        controller = self._controller(tracked.queue_key)
        if controller is not None:
            last = status.history[-1] if status.history else None
            seconds = None if last is None else last.finish_time - last.start_time
            controller.on_task_ended(status.phase, seconds)

    def on_status_refused(self, tracked: TrackedTask, why: str) -> None:
        """Record an Event: the Task itself cannot say what became of it."""
        self._events.on_status_refused(tracked.task, tracked.status, why)

    def on_completion_published(self, tracked: TrackedTask) -> None:
        """Delete a Task when its time to live is over; if need be, when each sink has it."""
        if self._sinks.is_safe(tracked.queue_key):
            self._ttl.add_ended(tracked)

    def on_end_missed(self, key: QueueKey, uid: str, *, dropped: bool) -> None:
        """Look for the end among the finished Tasks, if a sink gets it."""
        self._sinks.on_end_missed(key, uid, dropped=dropped)

    def on_commands_owed(self) -> None:
        """Record the commands that are owed."""
        self._commands.request_write()

    def _restore_commands(self, key: QueueKey, commands: list[WorkerCommand]) -> None:
        """Owe what a former leader did; where the TaskQueue is deleted, nobody can be reached."""
        if self.has_queue(key):
            self.tasks.dispatcher(key).commands.restore(commands)

    async def _stop(self, writer: asyncio.Task[None]) -> None:
        """Write the remaining statuses and completion events, then stop all loops."""
        self.tasks.close()
        await self._writer.drain(self._drain_seconds)
        if self._drain_seconds > 0:
            await self.tasks.completions.drain(_COMPLETIONS_SECONDS)
            everyone = [one for one, _ in self._controllers.values()]
            claimed = [one for one in everyone if self._claims.is_held(one.config.uid)]
            await asyncio.gather(*(one.write_last_status() for one in claimed))
            with contextlib.suppress(ApiError):
                await self._commands.write()
        await self._background.cancel(writer)
        for client in (self._client, self._reader_client, self._writer_client, self._feed_client):
            await client.close()
