"""All unfinished Tasks, from the feed that shows them to the status that ends them.

Here the parts that serve a Task are put together: the governor decides, dispatchers publish, the
inbox takes what workers report, the recorder writes. What each does is told in its module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from taskqueue.amqp.channel import Delivery
from taskqueue.backoff import Backoff
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.outcome import AttemptEvent
from taskqueue.controller.completions.publisher import CompletionPublisher
from taskqueue.controller.metrics import TASKS_HELD
from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.dependencies import Dependencies
from taskqueue.controller.tasks.dependency_graph import DependencyState
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.inbox import Inbox
from taskqueue.controller.tasks.payloads import Payloads
from taskqueue.controller.tasks.reconciler import TaskReconciler
from taskqueue.controller.tasks.tracked_task import (
    OutcomeSource,
    TaskStage,
    TrackedTask,
    log_fields,
)
from taskqueue.controller.tasks.transitions import TaskTransitions, ack
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.informer import Key, identity
from taskqueue.kubernetes.status_updater import StatusUpdater, version_of
from taskqueue.kubernetes.task_codec import read_task, task_path
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Phase, Task, TaskState
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Largest payload taken, in bytes of JSON.
PAYLOAD_LIMIT_BYTES = 200 * 1024
#: Objects read at once to find out what became of them.
_READS_AT_ONCE = 8
#: How long until a Task whose final status was refused is looked for.
_REFUSED_PAUSE_SECONDS = 5.0
#: Bound of the pause before a failed read is repeated.
_READ_AGAIN_SECONDS = 1.0

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class TaskListener(Protocol):
    """Who serves the TaskQueues of these Tasks."""

    def on_backlog_changed(self, key: QueueKey) -> None:
        """There may be more to do for a queue's workers."""

    def on_queue_missing(self, key: QueueKey) -> None:
        """The broker has no queue to route to."""

    def on_heartbeat(self, beat: Heartbeat) -> None:
        """A worker has reported, or says that it stops."""

    def on_task_ended(self, entry: TrackedTask) -> None:
        """The final status of a Task is in the API server."""

    def on_completion_published(self, entry: TrackedTask) -> None:
        """The completion event of a Task is published, or given up: the Task may be deleted."""


class TaskController:
    """See the module's contract; the listener of the feed of Tasks.

    Args:
        client: for the API server.
        writer: writes statuses.
        tokens: sign and judge attempts.
        owner: of the TaskQueues.
        uid_of: tells the uid the feed shows under a name.
        synced: tells whether all Tasks there were at the start are known; those may have been
            published by a former leader.
        leads: tells whether this process certainly still leads.
        random: for the jitter of back-offs.
        spawn: runs something beside everything else.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        writer: StatusUpdater,
        tokens: TokenKeys,
        owner: TaskListener,
        uid_of: Callable[[Key], str | None],
        synced: Callable[[], bool],
        leads: Callable[[], bool],
        random: Random,
        spawn: Spawn,
        clock: Clock = time.time,
    ) -> None:
        self._client = client
        self._clock = clock
        self._tokens = tokens
        self._owner = owner
        self._uid_of = uid_of
        self._synced = synced
        self._leads = leads
        self._spawn = spawn
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._entries: dict[str, TrackedTask] = {}
        self._dispatchers: dict[QueueKey, Dispatcher] = {}
        #: Finished Tasks the feed has yet to show leaving: what it shows of them is late news.
        self._leaving: set[str] = set()
        self.announcer = CompletionPublisher()
        self._recorder = TaskTransitions(
            entries=self._entries,
            dispatcher_of=self._dispatcher_of,
            writer=writer,
            announcer=self.announcer,
            clock=clock,
            random=random,
            look=lambda entry: self._governor.look(entry),
            on_recorded=self._recorded,
            on_told=owner.on_completion_published,
            on_refused=self._refused,
        )
        self.dependencies = Dependencies(
            client, unfinished=lambda key: self._by_name(key) is not None, look=self._look_at
        )
        self._governor = TaskReconciler(
            dispatcher_of=self._dispatcher_of,
            dependencies_of=self._dependencies_of,
            recorder=self._recorder,
            clock=clock,
        )
        self._payloads = Payloads(client, spawn=spawn, look=self._payload_read)
        self._inbox = Inbox(
            entries=self._entries,
            dispatcher_of=self._dispatchers.get,
            recorder=self._recorder,
            announcer=self.announcer,
            tokens=tokens,
            clock=clock,
            on_late=self._late,
            on_heartbeat=owner.on_heartbeat,
        )
        TASKS_HELD.set_function(lambda: len(self._entries))

    @property
    def held(self) -> Mapping[str, TrackedTask]:
        """The unfinished Tasks by uid."""
        return self._entries

    def take(self, delivery: Delivery, source: OutcomeSource) -> None:
        """Take a message from the inbox of a broker."""
        self._inbox.take(delivery, source)

    # The feed.

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take a Task from the feed."""
        uid = raw["metadata"]["uid"]
        if uid in self._leaving:
            return
        entry = self._entries.get(uid)
        if entry is not None and raw["metadata"].get("generation") == entry.task.generation:
            return  # our own write of its status, come back
        try:
            task = read_task(raw)
        except (ValueError, KeyError, TypeError) as problem:  # one bad object stops no other
            (namespace, name), _ = identity(raw)
            log.error(
                "task.unreadable", namespace=namespace, task=name, uid=uid, problem=str(problem)
            )
            return
        if entry is not None:
            self._changed(entry, task)
        elif not task.status.phase.terminal:
            entry = TrackedTask(
                task=task,
                status=task.status,
                written=task.status,
                fence=version_of(raw["metadata"]),
                astray=not self._synced(),
            )
            self._admit(entry)

    def on_deleted(self, key: Key, uid: str) -> None:
        """Take note that a Task left the feed: finished or deleted."""
        self._leaving.discard(uid)
        entry = self._entries.get(uid)
        if entry is None:
            return
        entry.left_feed = True
        if entry.stage is not TaskStage.FINISHED:
            self._spawn(self._look_after(entry), f"look for {key[0]}/{key[1]}")

    def _admit(self, entry: TrackedTask) -> None:
        self._entries[entry.task.uid] = entry
        self._dispatcher_of(entry).adopt(entry)
        if self._is_too_large(entry, entry.task.spec.payload):
            return
        self.dependencies.put(entry.task)
        self._payloads.resolve(entry)
        self._governor.look(entry)

    def _changed(self, entry: TrackedTask, task: Task) -> None:
        before, entry.task = entry.task.spec, task
        if task.spec.depends_on != before.depends_on:
            self.dependencies.put(task)
        placed = (task.spec.priority, task.spec.concurrency_key)
        if entry.stage is TaskStage.WAITING and placed != (before.priority, before.concurrency_key):
            self._dispatcher_of(entry).submit(entry)
        self._governor.look(entry)

    def _is_too_large(self, entry: TrackedTask, payload: bytes) -> bool:
        """End a Task with a payload above the limit; tell whether it is."""
        if len(payload) <= PAYLOAD_LIMIT_BYTES:
            return False
        spec = replace(entry.task.spec, payload=b"{}")  # not to be held
        entry.task, entry.payload = replace(entry.task, spec=spec), None
        merged = ", merged with what spec.payloadFrom names," if spec.payload_from else ""
        refused = lifecycle.refused(
            entry.status,
            now=self._clock(),
            reason="Invalid",
            message=f"spec.payload{merged} has {len(payload)} bytes, the limit is "
            f"{PAYLOAD_LIMIT_BYTES}: keep the data elsewhere, put a reference to it into the "
            "payload, and create the Task anew",
        )
        self._recorder.end(entry, refused)
        return True

    def _payload_read(self, entry: TrackedTask) -> None:
        if entry.payload is None or not self._is_too_large(entry, entry.payload):
            self._governor.look(entry)

    # What became of a Task.

    async def _look_after(self, entry: TrackedTask) -> None:
        """Find out whether an unfinished Task that left the feed is really gone."""
        raw = await self._read(entry.task)
        if _is_unfinished(raw):
            entry.left_feed = False
        else:
            self._let_go(entry, raw)

    def _refused(self, entry: TrackedTask) -> None:
        self._spawn(self._look_after_refused(entry), f"look for refused {entry.task.path}")

    async def _look_after_refused(self, entry: TrackedTask) -> None:
        """Write a refused status again for as long as there is a Task that needs it."""
        await asyncio.sleep(_REFUSED_PAUSE_SECONDS)
        raw = await self._read(entry.task)
        if _is_unfinished(raw):
            self._recorder.write_again(entry)
        else:
            self._let_go(entry, raw)

    def _let_go(self, entry: TrackedTask, raw: Mapping[str, Any] | None) -> None:
        """Forget a Task that is deleted, or finished by somebody else's hand."""
        if self._entries.get(entry.task.uid) is not entry:
            return
        log.info("task.gone", **log_fields(entry.task, stage=entry.stage.name))
        self._recorder.forget(entry)
        self._drop_if_idle(entry.queue_key)
        if raw is not None:
            self._tell_dependents(entry.task, read_task(raw).status)
        elif self._is_named(entry.task):
            self.dependencies.gone(entry.task)

    def _late(self, event: AttemptEvent, delivery: Delivery, source: OutcomeSource) -> None:
        self._spawn(
            self._announce_late(event, delivery, source), f"end of {event.namespace}/{event.task}"
        )

    async def _announce_late(
        self, event: AttemptEvent, delivery: Delivery, source: OutcomeSource
    ) -> None:
        """Announce an end again whose outcome its leader did not live to acknowledge."""
        raw = await self._get(event.namespace, event.task, event.uid)
        task = None if raw is None else read_task(raw)
        if task is None or not task.status.phase.terminal:
            ack(delivery)
            return
        self.announcer.finished(
            task,
            task.status,
            reported=True,
            publisher=source.publisher,
            on_announced=lambda: ack(delivery),
        )

    async def _read(self, task: Task) -> dict[str, Any] | None:
        """Return this very Task as it is now; None: it is deleted."""
        return await self._get(task.namespace, task.name, task.uid)

    async def _get(self, namespace: str, name: str, uid: str) -> dict[str, Any] | None:
        backoff = Backoff(first_seconds=_READ_AGAIN_SECONDS, longest_seconds=_READ_AGAIN_SECONDS)
        while True:
            try:
                async with self._reads:
                    raw = await self._client.get(task_path(namespace, name))
            except ApiError as problem:
                if not problem.transient:
                    return None
                await asyncio.sleep(problem.retry_after or backoff.next_delay())
                continue
            return raw if raw["metadata"]["uid"] == uid else None

    def _recorded(self, entry: TrackedTask) -> None:
        """Take note that a final status is in the API server."""
        if not entry.left_feed:
            self._leaving.add(entry.task.uid)
        self._tell_dependents(entry.task, entry.status)
        self._drop_if_idle(entry.queue_key)
        self._owner.on_task_ended(entry)

    def _tell_dependents(self, task: Task, status: TaskState) -> None:
        if self._is_named(task):
            self.dependencies.ended(
                task, status.phase, status.reason, status.completion_time or 0.0
            )

    # Queues.

    def dispatcher(self, key: QueueKey) -> Dispatcher:
        """Return the dispatcher of a queue, which need not exist."""
        dispatcher = self._dispatchers.get(key)
        if dispatcher is None:
            dispatcher = self._dispatchers[key] = Dispatcher(
                key,
                tokens=self._tokens,
                clock=self._clock,
                ledger=self._recorder,
                leads=self._leads,
                on_backlog=lambda: self._owner.on_backlog_changed(key),
                on_missing=lambda: self._owner.on_queue_missing(key),
            )
        return dispatcher

    def queue_changed(self, key: QueueKey) -> None:
        """Decide anew for the Tasks of a TaskQueue that is new, changed, or gone."""
        dispatcher = self._dispatchers[key]
        for entry in list(dispatcher.entries()):
            self._governor.look(entry)
        self._drop_if_idle(key)

    def _drop_if_idle(self, key: QueueKey) -> None:
        """Let go of the dispatcher of a queue that does not exist and has no Task."""
        dispatcher = self._dispatchers.get(key)
        if dispatcher is not None and dispatcher.config is None and dispatcher.empty:
            del self._dispatchers[key]

    def close(self) -> None:
        """Publish nothing more, and have everything written that is known."""
        self._recorder.flush()
        for dispatcher in self._dispatchers.values():
            dispatcher.close()

    def _dispatcher_of(self, entry: TrackedTask) -> Dispatcher:
        return self.dispatcher(entry.queue_key)

    # Names.

    def _by_name(self, key: Key) -> TrackedTask | None:
        uid = self._uid_of(key)
        return None if uid is None else self._entries.get(uid)

    def _is_named(self, task: Task) -> bool:
        """Whether no other Task is shown under the name of this one."""
        return self._uid_of((task.namespace, task.name)) in (None, task.uid)

    def _look_at(self, keys: Iterable[Key]) -> None:
        for key in keys:
            entry = self._by_name(key)
            if entry is not None:
                self._governor.look(entry)

    def _dependencies_of(self, entry: TrackedTask) -> DependencyState:
        return self.dependencies.of(entry.task)


def _is_unfinished(raw: Mapping[str, Any] | None) -> bool:
    if raw is None:
        return False
    return not Phase((raw.get("status") or {}).get("phase", Phase.PENDING)).terminal
