"""The engine: every unfinished Task and every TaskQueue, and the loops that serve them.

Tasks come in through the feed, TaskQueues through `Engine.put_queue`, worker Deployments through a
feed of their own, outcomes through the broker links. The engine only connects the parts; what each
does is told in its module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from pydantic import ValidationError

from taskqueue.cluster import deployments
from taskqueue.cluster.client import UNREADABLE, Access, ApiClient, ApiError
from taskqueue.cluster.deployments import PoolState
from taskqueue.cluster.feed import Feed, Key, identity
from taskqueue.cluster.queue_objects import QUEUES_PATH, read_queue
from taskqueue.cluster.status_writer import CONCURRENCY, StatusWriter
from taskqueue.cluster.task_objects import (
    TASKS_PATH,
    UNFINISHED,
    read_task,
    seconds_of,
    task_path,
)
from taskqueue.domain.queue import QueueKey
from taskqueue.domain.task import Phase
from taskqueue.domain.token import TokenKeys
from taskqueue.engine.broker_links import BrokerLinks
from taskqueue.engine.dispatcher import Dispatcher
from taskqueue.engine.entry import Entry, Stage, log_fields
from taskqueue.engine.metrics import TASKS_HELD, forget_queue
from taskqueue.engine.queue_controller import QueueController, Totals
from taskqueue.engine.recorder import Recorder
from taskqueue.engine.recount import Recount
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Largest payload taken, in bytes of JSON.
PAYLOAD_LIMIT_BYTES = 200 * 1024
#: How long statuses may still be written after the order to stop.
_DRAIN_SECONDS = 5.0
#: Objects read at once to find out why they left the feed.
_READS_AT_ONCE = 8
#: How long until a Task whose final status was refused is looked for.
_REFUSED_PAUSE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0


class Engine:
    """See the module's contract.

    Args:
        access: of the API server.
        tokens: sign and judge attempts.
    """

    def __init__(self, access: Access, tokens: TokenKeys) -> None:
        self._random = Random()  # noqa: S311  (jitter, not secrets)
        self._tokens = tokens
        self._client = ApiClient(access)
        self._writer_client = ApiClient(access, max_connections=CONCURRENCY)
        self._feed_client = ApiClient(access, max_connections=4, timeout_seconds=60)
        self._writer = StatusWriter(self._writer_client)
        self._drain_seconds = _DRAIN_SECONDS
        self._entries: dict[str, Entry] = {}
        self._dispatchers: dict[QueueKey, Dispatcher] = {}
        self._controllers: dict[QueueKey, tuple[QueueController, asyncio.Task[None]]] = {}
        #: Finished Tasks the feed has yet to show leaving: what it shows of them is late news.
        self._leaving: set[str] = set()
        self._pool_states: dict[QueueKey, PoolState] = {}
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._background: set[asyncio.Task[None]] = set()
        self._feed = Feed(
            self._feed_client,
            TASKS_PATH,
            self,
            selectors={"fieldSelector": UNFINISHED},
            random=self._random,
        )
        self._pools = Feed(
            self._feed_client,
            deployments.DEPLOYMENTS_PATH,
            _Pools(self),
            selectors={
                "labelSelector": ",".join(f"{k}={v}" for k, v in deployments.MANAGED_BY.items())
            },
            random=self._random,
        )
        self._recorder = Recorder(
            entries=self._entries,
            dispatcher_of=lambda entry: self._dispatcher(entry.queue_key),
            writer=self._writer,
            tokens=tokens,
            clock=time.time,
            random=self._random,
            on_recorded=self._recorded,
            on_refused=self._refused,
        )
        self._recount = Recount(self._client, held=self._entries)
        self._links = BrokerLinks(
            feed_synced=self._feed.synced,
            random=self._random,
            take=self._recorder.take,
            spawn=self._spawn,
        )
        TASKS_HELD.set_function(lambda: len(self._entries))

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
            async with asyncio.TaskGroup() as group:
                group.create_task(_never_ends(writer), name="watch of the status writer")
                group.create_task(self._feed.run(), name="feed of Tasks")
                group.create_task(self._pools.run(), name="feed of Deployments")
                group.create_task(self._recount_once(), name="recount of finished Tasks")
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
        dispatcher = self._dispatcher(config.key)
        dispatcher.config = config
        running = self._controllers.get(config.key)
        if running is not None and running[0].config.uid == config.uid:
            running[0].reconfigure(config)
            return
        if running is not None:
            self.drop_queue(config.key, running[0].config.uid)
            dispatcher = self._dispatcher(config.key)
            dispatcher.config = config
        totals = (raw.get("status") or {}).get("totals") or {}
        controller = QueueController(
            config,
            Totals(**{name: int(totals.get(name, 0)) for name in Totals.__slots__}),
            dispatcher=dispatcher,
            client=self._client,
            links=self._links.get,
            clock=time.time,
            created=seconds_of(raw["metadata"]["creationTimestamp"]),
            on_gone=lambda: self.drop_queue(config.key, config.uid),
        )
        task = self._spawn(self._control(controller), f"TaskQueue {config.namespace}/{config.name}")
        task.add_done_callback(lambda _: self._links.leave_vain())
        self._controllers[config.key] = (controller, task)
        for entry in list(dispatcher.entries()):
            if entry.status.phase is Phase.BLOCKED:
                self._recorder.unblock(entry)
        log.info("queue.taken", namespace=config.namespace, queue=config.name)

    def drop_queue(self, key: QueueKey, uid: str) -> None:
        """Take note that a TaskQueue is gone; its Tasks wait until it appears again.

        One made anew under the name may be known before the former's end is told: the uid tells.
        """
        running = self._controllers.get(key)
        if running is None or running[0].config.uid != uid:
            return
        del self._controllers[key]
        running[1].cancel()
        dispatcher = self._dispatchers[key]
        dispatcher.close()
        dispatcher.config = None
        forget_queue(key)
        if dispatcher.empty:
            del self._dispatchers[key]
        for entry in list(dispatcher.entries()):
            if entry.status.phase is not Phase.RUNNING:
                self._block(entry)
        log.info("queue.gone", namespace=key[0], queue=key[1])

    async def _control(self, controller: QueueController) -> None:
        # A pool whose size is not known yet must not be resized.
        await self._pools.synced.wait()
        await self._feed.synced.wait()
        controller.pool.observed(self._pool_states.get(controller.config.key))
        await controller.run()

    async def _take_queues(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                found = await self._client.get(QUEUES_PATH)
                break
            except ApiError as problem:
                log.warning("queue.list_failed", problem=str(problem))
                if problem.reason == UNREADABLE:
                    return  # one object no parser takes; kopf brings those it can read
                await asyncio.sleep(problem.retry_after or pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        for raw in found["items"]:
            try:
                self.put_queue(raw)
            except ValidationError as problem:
                log.error("queue.unreadable", queue=raw["metadata"]["name"], problem=str(problem))

    # Tasks.

    def upserted(self, raw: dict[str, Any]) -> None:
        """Take a Task from the feed."""
        uid = raw["metadata"]["uid"]
        if uid in self._leaving:
            return
        held = self._entries.get(uid)
        if held is not None and raw["metadata"].get("generation") == held.task.generation:
            return  # our own write of its status, come back
        try:
            task = read_task(raw)
        except (ValueError, KeyError, TypeError) as problem:  # one bad object stops no other
            (namespace, name), _ = identity(raw)
            log.error(
                "task.unreadable", namespace=namespace, task=name, uid=uid, problem=str(problem)
            )
            return
        if held is not None:
            moved = task.spec.priority != held.task.spec.priority
            held.task = task
            if moved and held.stage is Stage.WAITING:
                self._dispatcher(held.queue_key).submit(held)
        elif not task.status.phase.terminal:
            self._admit(Entry(task=task, status=task.status, written=task.status))

    def gone(self, key: Key, uid: str) -> None:
        """Take note that a Task left the feed: finished or deleted."""
        self._leaving.discard(uid)
        entry = self._entries.get(uid)
        if entry is None:
            return
        entry.left_feed = True
        if entry.stage is not Stage.FINISHED:
            self._spawn(self._look_after(entry), f"look for {key[0]}/{key[1]}")

    def _admit(self, entry: Entry) -> None:
        task = entry.task
        self._entries[task.uid] = entry
        dispatcher = self._dispatcher(entry.queue_key)
        size = len(task.spec.payload)
        if size > PAYLOAD_LIMIT_BYTES:
            entry.task = replace(task, spec=replace(task.spec, payload=b"{}"))  # not to be held
            self._recorder.refuse(
                entry,
                reason="Invalid",
                message=f"spec.payload has {size} bytes, the limit is {PAYLOAD_LIMIT_BYTES}: keep "
                "the data elsewhere, put a reference to it into the payload, and create the Task "
                "anew",
            )
            return
        dispatcher.submit(entry)
        if dispatcher.config is None:
            self._block(entry)
        elif entry.status.phase is Phase.BLOCKED:
            self._recorder.unblock(entry)

    def _block(self, entry: Entry) -> None:
        task = entry.task
        self._recorder.block(
            entry,
            reason="QueueNotFound",
            message=f"spec.queue: there is no TaskQueue {task.namespace}/{task.spec.queue}: create "
            "it, and the Task goes on",
        )

    async def _look_after(self, entry: Entry) -> None:
        """Find out whether an unfinished Task that left the feed is really gone."""
        if await self._is_unfinished(entry):
            entry.left_feed = False
        elif self._entries.get(entry.task.uid) is entry and entry.stage is not Stage.FINISHED:
            log.info("task.gone", **log_fields(entry.task, stage=entry.stage.name))
            self._recorder.forget(entry)

    def _refused(self, entry: Entry) -> None:
        self._spawn(self._look_after_refused(entry), f"look for refused {entry.task.path}")

    async def _look_after_refused(self, entry: Entry) -> None:
        """Write a refused status again for as long as there is a Task that needs it."""
        await asyncio.sleep(_REFUSED_PAUSE_SECONDS)
        if await self._is_unfinished(entry):
            self._recorder.write_again(entry)
        elif self._entries.get(entry.task.uid) is entry:
            log.info("task.gone", **log_fields(entry.task, stage=entry.stage.name))
            self._recorder.forget(entry)

    async def _is_unfinished(self, entry: Entry) -> bool:
        """Ask the API server whether this very Task is there, in no final phase."""
        task = entry.task
        while True:
            try:
                async with self._reads:
                    raw = await self._client.get(task_path(task.namespace, task.name))
            except ApiError as problem:
                if problem.status == 404:
                    return False
                await asyncio.sleep(problem.retry_after or 1.0)
                continue
            phase = Phase((raw.get("status") or {}).get("phase", Phase.PENDING))
            return raw["metadata"]["uid"] == task.uid and not phase.terminal

    # Worker pools.

    def pool_observed(self, key: QueueKey, state: PoolState | None) -> None:
        """Take what a worker Deployment says of itself; None: it is gone."""
        if state is None:
            self._pool_states.pop(key, None)
        else:
            self._pool_states[key] = state
        running = self._controllers.get(key)
        if running is not None:
            running[0].pool.observed(state)
            running[0].wake()

    # Parts.

    def _dispatcher(self, key: QueueKey) -> Dispatcher:
        dispatcher = self._dispatchers.get(key)
        if dispatcher is None:
            dispatcher = self._dispatchers[key] = Dispatcher(
                key,
                tokens=self._tokens,
                clock=time.time,
                on_backlog=lambda: self._wake(key),
                on_missing=lambda: self._missing(key),
            )
        return dispatcher

    def _wake(self, key: QueueKey) -> None:
        if key in self._controllers:
            self._controllers[key][0].wake()

    def _missing(self, key: QueueKey) -> None:
        if key in self._controllers:
            self._controllers[key][0].missing()

    # Totals.

    def _recorded(self, entry: Entry) -> None:
        """Take note that a final status is in the API server."""
        if not entry.left_feed:
            self._leaving.add(entry.task.uid)
        self._recount.counted(entry.task.uid)
        running = self._controllers.get(entry.queue_key)
        if running is not None:
            running[0].totals.add(entry.status.phase)

    async def _recount_once(self) -> None:
        await self._feed.synced.wait()
        await self._recount.run({key: one for key, (one, _) in self._controllers.items()})

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
        """Stop dispatching and consuming, after the statuses at hand are written."""
        for dispatcher in self._dispatchers.values():
            dispatcher.close()
        await self._writer.drain(self._drain_seconds)
        if self._drain_seconds > 0:
            controllers = [controller for controller, _ in self._controllers.values()]
            await asyncio.gather(*(controller.leave() for controller in controllers))
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

    def upserted(self, raw: dict[str, Any]) -> None:
        metadata = raw["metadata"]
        key = (metadata["namespace"], metadata["name"].removesuffix(deployments.SUFFIX))
        self._engine.pool_observed(key, deployments.read_pool(raw))

    def gone(self, key: Key, uid: str) -> None:
        namespace, name = key
        self._engine.pool_observed((namespace, name.removesuffix(deployments.SUFFIX)), None)
