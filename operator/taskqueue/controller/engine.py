"""The engine: every TaskQueue and every unfinished Task, and the loops that serve them.

Tasks come in through the feed, TaskQueues through `Engine.put_queue`, worker Deployments through a
feed of their own, outcomes through the broker links. The engine only connects the parts; what each
does is told in its module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from pydantic import ValidationError

from taskqueue.backoff import Backoff
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.controller.completions.event_recorder import EventRecorder
from taskqueue.controller.metrics import remove_queue
from taskqueue.controller.queues.broker_links import BrokerLinks
from taskqueue.controller.queues.reconciler import QueueReconciler, Totals
from taskqueue.controller.queues.statistics import StatisticsReaders
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.controller.tasks.ttl import TtlController
from taskqueue.kubernetes import deployments
from taskqueue.kubernetes.client import UNREADABLE, ApiAccess, ApiClient, ApiError
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.events import EventWriter
from taskqueue.kubernetes.informer import Informer, Key
from taskqueue.kubernetes.status_updater import CONCURRENCY, StatusUpdater
from taskqueue.kubernetes.task_codec import TASKS_PATH, UNFINISHED
from taskqueue.kubernetes.taskqueue_codec import QUEUES_PATH, read_queue
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueConfig, QueueKey
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import from_rfc3339

log = EventLog(__name__)

#: How long statuses may still be written after the order to stop.
_DRAIN_SECONDS = 5.0
#: How long events about them may still be published then.
_ANNOUNCE_SECONDS = 2.0
#: Conditions of a TaskQueue that are trouble when False, and reasons that are none.
_TOLD = ("BrokerConnected", "WorkersAvailable")
_NORMAL = ("Starting", "Connecting", "ReadingInbox", "Deleting", "WorkersElsewhere")


class Engine:
    """See the module's contract; the `Owner` of the Tasks.

    Args:
        access: of the API server.
        tokens: sign and judge attempts.
        namespace: where the operator runs.
        instance: which operator this is, for Kubernetes Events.
        leads: tells whether this process certainly still leads.
    """

    def __init__(
        self,
        access: ApiAccess,
        tokens: TokenKeys,
        *,
        namespace: str,
        instance: str = "",
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        random = Random()  # noqa: S311  (jitter, not secrets)
        self._client = ApiClient(access)
        self._writer_client = ApiClient(access, max_connections=CONCURRENCY)
        self._feed_client = ApiClient(access, max_connections=4, timeout_seconds=60)
        self._writer = StatusUpdater(self._writer_client)
        self._namespace = namespace
        self._drain_seconds = _DRAIN_SECONDS
        self._controllers: dict[QueueKey, tuple[QueueReconciler, asyncio.Task[None]]] = {}
        self._pool_states: dict[QueueKey, PoolState] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.tasks = TaskController(
            client=self._client,
            writer=self._writer,
            tokens=tokens,
            owner=self,
            uid_of=lambda key: self._feed.uid_of(key),
            synced=lambda: self._feed.synced.is_set(),
            leads=leads,
            random=random,
            spawn=self._spawn,
        )
        self._feed = Informer(
            self._feed_client,
            TASKS_PATH,
            self.tasks,
            selectors={"fieldSelector": UNFINISHED},
            random=random,
        )
        self._pools = Informer(
            self._feed_client,
            deployments.DEPLOYMENTS_PATH,
            _Pools(self),
            selectors={
                "labelSelector": ",".join(f"{k}={v}" for k, v in deployments.MANAGED_BY.items())
            },
            random=random,
        )
        self._janitor = TtlController(
            self._client,
            clock=time.time,
            ttl_of=self._ttl_of,
            is_needed=lambda namespace, name: self.tasks.dependencies.is_needed((namespace, name)),
        )
        self._notices = EventRecorder(EventWriter(self._client, instance=instance), clock=time.time)
        self._links = BrokerLinks(
            feed_synced=self._feed.synced,
            random=random,
            on_message=self.tasks.on_delivery,
            spawn=self._spawn,
        )
        self._readers = StatisticsReaders(spawn=self._spawn)

    @property
    def ready(self) -> bool:
        """Whether all there was at the start is known."""
        return self._feed.synced.is_set() and self._pools.synced.is_set()

    async def run(self) -> None:
        """Serve until cancelled, then write what is still to be written."""
        writer = asyncio.create_task(self._writer.run(), name="status writer")
        try:
            # Before the first Task: none must be called Blocked because its queue comes later.
            await self._take_queues()
            self._janitor.list_all()
            async with asyncio.TaskGroup() as group:
                group.create_task(_never_ends(writer), name="watch of the status writer")
                group.create_task(self._feed.run(), name="feed of Tasks")
                group.create_task(self._pools.run(), name="feed of Deployments")
                group.create_task(self.tasks.dependencies.run(), name="dependencies")
                group.create_task(self._janitor.run(after=self._feed.synced), name="janitor")
                group.create_task(self._notices.run(), name="notices")
        finally:
            await self._stop(writer)

    def leave_unwritten(self) -> None:
        """Stop without writing what is still to be written: somebody else will."""
        self._drain_seconds = 0.0

    # TaskQueues.

    def put_queue(self, raw: Mapping[str, Any]) -> None:
        """Take a TaskQueue that is new or changed.

        Raises:
            pydantic.ValidationError: it does not follow the schema.
        """
        config = read_queue(raw)
        running = self._controllers.get(config.key)
        if running is not None and running[0].config.uid == config.uid:
            before = running[0].config.policy
            running[0].reconfigure(config)
            if config.policy.active_deadline_seconds != before.active_deadline_seconds:
                self.tasks.on_queue_changed(config.key)
            if config.policy.ttl_seconds != before.ttl_seconds:
                self._janitor.on_queue_changed(config.key)
            return
        if running is not None:
            self.drop_queue(config.key, running[0].config.uid)
        dispatcher = self.tasks.dispatcher(config.key)
        dispatcher.config = config
        totals = (raw.get("status") or {}).get("totals") or {}
        controller = QueueReconciler(
            config,
            Totals(**{name: int(totals.get(name, 0)) for name in Totals.__slots__}),
            dispatcher=dispatcher,
            client=self._client,
            links=self._links.get,
            clock=time.time,
            created=from_rfc3339(raw["metadata"]["creationTimestamp"]),
            on_deleted=lambda: self.drop_queue(config.key, config.uid),
            on_condition=lambda condition: self._condition(config, condition),
            readers=self._readers,
            operator_namespace=self._namespace,
            sizing_conflict=self._sizing_conflict,
        )
        task = self._spawn(self._control(controller), f"TaskQueue {config.namespace}/{config.name}")
        task.add_done_callback(lambda _: self._links.close_unused())
        self._controllers[config.key] = (controller, task)
        self.tasks.on_queue_changed(config.key)
        self._janitor.on_queue_changed(config.key)
        log.info("queue.added", namespace=config.namespace, queue=config.name)

    def drop_queue(self, key: QueueKey, uid: str) -> None:
        """Take note that a TaskQueue is gone; its Tasks wait until it appears again.

        One made anew under the name may be known before the former's end is told: the uid tells.
        """
        running = self._controllers.get(key)
        if running is None or running[0].config.uid != uid:
            return
        del self._controllers[key]
        running[1].cancel()
        dispatcher = self.tasks.dispatcher(key)
        dispatcher.close()
        dispatcher.config = None
        remove_queue(key)
        self._notices.forget(key)
        self.tasks.on_queue_changed(key)
        log.info("queue.deleted", namespace=key[0], queue=key[1])

    async def _control(self, controller: QueueReconciler) -> None:
        # A pool whose size is not known yet must not be resized.
        await self._pools.synced.wait()
        await self._feed.synced.wait()
        controller.pool.on_deployment_state(self._pool_states.get(controller.config.key))
        await controller.run()

    async def _take_queues(self) -> None:
        backoff = Backoff()
        while True:
            try:
                found = await self._client.get(QUEUES_PATH)
                break
            except ApiError as problem:
                log.warning("queue.list_failed", error=str(problem))
                if problem.reason == UNREADABLE:
                    return  # one object no parser takes; kopf brings those it can read
                await asyncio.sleep(problem.retry_after or backoff.next_delay())
        for raw in found["items"]:
            try:
                self.put_queue(raw)
            except ValidationError as problem:
                log.error("queue.parse_failed", queue=raw["metadata"]["name"], error=str(problem))

    def _condition(self, config: QueueConfig, condition: Condition) -> None:
        if condition.type in _TOLD:
            # What passes by itself is neither trouble nor the end of any.
            status = None if condition.reason in _NORMAL else condition.status
            self._notices.queue(config.key, config.uid, replace(condition, status=status))

    def _sizing_conflict(self, config: QueueConfig) -> str:
        """Tell why what a TaskQueue refers to is not its own to size; "": it is.

        The operator's own Deployments never are, and of several TaskQueues only the oldest has it.
        """
        ref = config.scale_target
        if ref is None:
            return ""
        what = f"spec.workers.scaleTargetRef: {ref.kind} {config.namespace}/{ref.name}"
        owner = (config.namespace, ref.name.removesuffix(deployments.SUFFIX))
        if owner in self._pool_states and (ref.api_version, ref.kind) == ("apps/v1", "Deployment"):
            return f"{what} is made by the operator for a template: make another one"
        mine = self._controller(config.key)
        if mine is None:
            return ""
        rivals = [
            one
            for one, _ in self._controllers.values()
            if (one.config.namespace, one.config.scale_target) == (config.namespace, ref)
        ]
        first = min(rivals, key=lambda one: (one.created, one.config.name), default=mine)
        if first is mine:
            return ""
        return f"{what} is already sized by TaskQueue {first.config.name}: name another one"

    def _controller(self, key: QueueKey) -> QueueReconciler | None:
        running = self._controllers.get(key)
        return None if running is None else running[0]

    def _ttl_of(self, key: QueueKey) -> int | None:
        controller = self._controller(key)
        return None if controller is None else controller.config.policy.ttl_seconds

    # Worker pools.

    def on_pool_state(self, key: QueueKey, state: PoolState | None) -> None:
        """Take what a worker Deployment says of itself; None: it is gone."""
        if state is None:
            self._pool_states.pop(key, None)
        else:
            self._pool_states[key] = state
        controller = self._controller(key)
        if controller is not None:
            controller.pool.on_deployment_state(state)
            controller.request_reconcile()

    # What the Tasks tell.

    def on_backlog_changed(self, key: QueueKey) -> None:
        """Have the pool looked at."""
        controller = self._controller(key)
        if controller is not None:
            controller.request_reconcile()

    def on_queue_missing(self, key: QueueKey) -> None:
        """Have the broker's queue declared again."""
        controller = self._controller(key)
        if controller is not None:
            controller.on_queue_missing()

    def on_heartbeat(self, beat: Heartbeat) -> None:
        """Register a worker, or let it go."""
        controller = self._controller((beat.namespace, beat.queue))
        if controller is not None:
            controller.on_heartbeat(beat)

    def on_task_ended(self, entry: TrackedTask) -> None:
        """Count a Task, and tell of its trouble."""
        task, status = entry.task, entry.status
        self._notices.on_task_ended(task, status)
        controller = self._controller(entry.queue_key)
        if controller is not None:
            last = status.history[-1] if status.history else None
            seconds = None if last is None else last.finish_time - last.start_time
            controller.on_task_ended(status.phase, seconds)

    def on_completion_published(self, entry: TrackedTask) -> None:
        """Have a Task deleted when its time to live is over."""
        task, status = entry.task, entry.status
        self._janitor.add(
            task.namespace,
            task.name,
            task.uid,
            queue=entry.queue_key,
            completed=status.completion_time or time.time(),
            ttl=task.spec.overrides.ttl_seconds,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("engine.task_failed", exc_info=problem, what=task.get_name())

    async def _stop(self, writer: asyncio.Task[None]) -> None:
        """Stop dispatching and consuming, after the statuses at hand are written and told."""
        self.tasks.close()
        await self._writer.drain(self._drain_seconds)
        if self._drain_seconds > 0:
            await self.tasks.completions.drain(_ANNOUNCE_SECONDS)
            controllers = [controller for controller, _ in self._controllers.values()]
            await asyncio.gather(*(controller.write_last_status() for controller in controllers))
        ending = (writer, *self._background)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for client in (self._client, self._writer_client, self._feed_client):
            await client.close()


async def _never_ends(task: asyncio.Task[None]) -> None:
    """Fail as soon as a task that should run for ever has ended."""
    await asyncio.wait({task})
    if not task.cancelled() and (problem := task.exception()) is not None:
        raise problem
    raise RuntimeError(f"{task.get_name()} has ended")


class _Pools:
    """The feed of worker Deployments, as the engine takes it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def on_upserted(self, raw: dict[str, Any]) -> None:
        metadata = raw["metadata"]
        key = (metadata["namespace"], metadata["name"].removesuffix(deployments.SUFFIX))
        self._engine.on_pool_state(key, deployments.read_pool(raw))

    def on_deleted(self, key: Key, uid: str) -> None:
        namespace, name = key
        self._engine.on_pool_state((namespace, name.removesuffix(deployments.SUFFIX)), None)
