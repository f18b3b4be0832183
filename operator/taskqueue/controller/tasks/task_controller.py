"""All unfinished Tasks, from the informer that finds them to their final status.

This module wires the parts that serve a Task: the reconciler decides, dispatchers publish, the
inbox handles what workers report, and the transitions change and write statuses.
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

#: Largest payload accepted, in bytes of JSON.
PAYLOAD_LIMIT_BYTES = 200 * 1024
#: Concurrent reads of single Tasks.
_READS_AT_ONCE = 8
#: Pause before a Task whose status was refused is read.
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
    """Serves all unfinished Tasks; the event handler of the informer of Tasks.

    Args:
        client: for the API server.
        writer: writes statuses.
        tokens: sign and judge attempts.
        owner: of the TaskQueues.
        uid_of: returns the uid the informer has under a name.
        synced: whether the first list is complete. A former leader may have published the Tasks
            of that list.
        leads: whether this process certainly still leads.
        random: for the jitter of back-offs.
        spawn: runs a coroutine in the background.
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
        #: Finished Tasks the informer has yet to report as deleted: their updates are outdated.
        self._leaving: set[str] = set()
        self.completions = CompletionPublisher()
        self._transitions = TaskTransitions(
            entries=self._entries,
            dispatcher_of=self._dispatcher_of,
            updater=writer,
            completions=self.completions,
            clock=clock,
            random=random,
            reconcile=lambda entry: self._reconciler.reconcile(entry),
            on_recorded=self._on_recorded,
            on_completion_published=owner.on_completion_published,
            on_refused=self._on_status_refused,
        )
        self.dependencies = Dependencies(
            client,
            is_unfinished=lambda key: self._by_name(key) is not None,
            on_change=self._reconcile_named,
        )
        self._reconciler = TaskReconciler(
            dispatcher_of=self._dispatcher_of,
            dependencies_of=self._dependencies_of,
            transitions=self._transitions,
            clock=clock,
        )
        self._payloads = Payloads(client, spawn=spawn, on_change=self._on_payload_change)
        self._inbox = Inbox(
            entries=self._entries,
            dispatcher_of=self._dispatchers.get,
            transitions=self._transitions,
            completions=self.completions,
            tokens=tokens,
            clock=clock,
            on_late=self._on_late_outcome,
            on_heartbeat=owner.on_heartbeat,
        )
        TASKS_HELD.set_function(lambda: len(self._entries))

    @property
    def held(self) -> Mapping[str, TrackedTask]:
        """The unfinished Tasks by uid."""
        return self._entries

    def on_delivery(self, delivery: Delivery, source: OutcomeSource) -> None:
        """Handle a message from the inbox of a broker."""
        self._inbox.on_delivery(delivery, source)

    # Callbacks of the informer.

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Admit a Task that is new, or apply a change of its spec."""
        uid = raw["metadata"]["uid"]
        if uid in self._leaving:
            return
        entry = self._entries.get(uid)
        if entry is not None and raw["metadata"].get("generation") == entry.task.generation:
            return  # our own status write
        try:
            task = read_task(raw)
        except (
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # one bad object must not stop the others
            (namespace, name), _ = identity(raw)
            log.error("task.unreadable", namespace=namespace, task=name, uid=uid, error=str(error))
            return
        if entry is not None:
            self._on_spec_change(entry, task)
        elif not task.status.phase.terminal:
            entry = TrackedTask(
                task=task,
                status=task.status,
                written=task.status,
                fence=version_of(raw["metadata"]),
                stray_copy_possible=not self._synced(),
            )
            self._admit(entry)

    def on_deleted(self, key: Key, uid: str) -> None:
        """Check whether a Task that left the informer is finished or deleted."""
        self._leaving.discard(uid)
        entry = self._entries.get(uid)
        if entry is None:
            return
        entry.left_feed = True
        if entry.stage is not TaskStage.FINISHED:
            self._spawn(self._check_left(entry), f"read {key[0]}/{key[1]}")

    def _admit(self, entry: TrackedTask) -> None:
        self._entries[entry.task.uid] = entry
        self._dispatcher_of(entry).adopt(entry)
        if self._is_too_large(entry, entry.task.spec.payload):
            return
        self.dependencies.update(entry.task)
        self._payloads.resolve(entry)
        self._reconciler.reconcile(entry)

    def _on_spec_change(self, entry: TrackedTask, task: Task) -> None:
        before, entry.task = entry.task.spec, task
        if task.spec.depends_on != before.depends_on:
            self.dependencies.update(task)
        placed = (task.spec.priority, task.spec.concurrency_key)
        if entry.stage is TaskStage.WAITING and placed != (before.priority, before.concurrency_key):
            self._dispatcher_of(entry).enqueue(entry)
        self._reconciler.reconcile(entry)

    def _is_too_large(self, entry: TrackedTask, payload: bytes) -> bool:
        """End a Task with a payload above the limit; return whether it is."""
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
            "payload, and create the Task again",
        )
        self._transitions.finish(entry, refused)
        return True

    def _on_payload_change(self, entry: TrackedTask) -> None:
        if entry.payload is None or not self._is_too_large(entry, entry.payload):
            self._reconciler.reconcile(entry)

    # Tasks that are deleted, refused, or finished elsewhere.

    async def _check_left(self, entry: TrackedTask) -> None:
        """Remove an unfinished Task that left the informer, unless it still exists."""
        raw = await self._read(entry.task)
        if _is_unfinished(raw):
            entry.left_feed = False
        else:
            self._remove(entry, raw)

    def _on_status_refused(self, entry: TrackedTask) -> None:
        self._spawn(self._retry_refused(entry), f"read refused {entry.task.path}")

    async def _retry_refused(self, entry: TrackedTask) -> None:
        """Write a refused status again for as long as the Task exists unfinished."""
        await asyncio.sleep(_REFUSED_PAUSE_SECONDS)
        raw = await self._read(entry.task)
        if _is_unfinished(raw):
            self._transitions.rewrite(entry)
        else:
            self._remove(entry, raw)

    def _remove(self, entry: TrackedTask, raw: Mapping[str, Any] | None) -> None:
        """Remove a Task that is deleted, or was finished by another writer."""
        if self._entries.get(entry.task.uid) is not entry:
            return
        event = "task.deleted" if raw is None else "task.finished_elsewhere"
        log.info(event, **log_fields(entry.task, stage=entry.stage.name))
        self._transitions.remove(entry)
        self._drop_if_idle(entry.queue_key)
        if raw is not None:
            self._notify_dependents(entry.task, read_task(raw).status)
        elif self._is_named(entry.task):
            self.dependencies.on_deleted(entry.task)

    def _on_late_outcome(
        self, event: AttemptEvent, delivery: Delivery, source: OutcomeSource
    ) -> None:
        self._spawn(
            self._publish_late_completion(event, delivery, source),
            f"completion of {event.namespace}/{event.task}",
        )

    async def _publish_late_completion(
        self, event: AttemptEvent, delivery: Delivery, source: OutcomeSource
    ) -> None:
        """Publish the completion event again if a former leader did not acknowledge the outcome."""
        raw = await self._get_task(event.namespace, event.task, event.uid)
        task = None if raw is None else read_task(raw)
        if task is None or not task.status.phase.terminal:
            ack(delivery)
            return
        self.completions.publish_task(
            task,
            task.status,
            reported=True,
            publisher=source.publisher,
            on_published=lambda: ack(delivery),
        )

    async def _read(self, task: Task) -> dict[str, Any] | None:
        """Return this Task as it is now; None: it is deleted."""
        return await self._get_task(task.namespace, task.name, task.uid)

    async def _get_task(self, namespace: str, name: str, uid: str) -> dict[str, Any] | None:
        backoff = Backoff(first_seconds=_READ_AGAIN_SECONDS, longest_seconds=_READ_AGAIN_SECONDS)
        while True:
            try:
                async with self._reads:
                    raw = await self._client.get(task_path(namespace, name))
            except ApiError as error:
                if not error.transient:
                    return None
                await asyncio.sleep(error.retry_after or backoff.next_delay())
                continue
            return raw if raw["metadata"]["uid"] == uid else None

    def _on_recorded(self, entry: TrackedTask) -> None:
        """Release what is held for a Task whose final status is written."""
        if not entry.left_feed:
            self._leaving.add(entry.task.uid)
        self._notify_dependents(entry.task, entry.status)
        self._drop_if_idle(entry.queue_key)
        self._owner.on_task_ended(entry)

    def _notify_dependents(self, task: Task, status: TaskState) -> None:
        if self._is_named(task):
            self.dependencies.on_finished(
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
                listener=self._transitions,
                leads=self._leads,
                on_backlog=lambda: self._owner.on_backlog_changed(key),
                on_missing=lambda: self._owner.on_queue_missing(key),
            )
        return dispatcher

    def on_queue_changed(self, key: QueueKey) -> None:
        """Reconcile the Tasks of a TaskQueue that is new, changed, or deleted."""
        dispatcher = self._dispatchers[key]
        for entry in list(dispatcher.entries()):
            self._reconciler.reconcile(entry)
        self._drop_if_idle(key)

    def _drop_if_idle(self, key: QueueKey) -> None:
        """Drop the dispatcher of a queue that does not exist and has no Task."""
        dispatcher = self._dispatchers.get(key)
        if dispatcher is not None and dispatcher.config is None and dispatcher.empty:
            del self._dispatchers[key]

    def close(self) -> None:
        """Stop publishing, and write every pending status."""
        self._transitions.write_pending()
        for dispatcher in self._dispatchers.values():
            dispatcher.close()

    def _dispatcher_of(self, entry: TrackedTask) -> Dispatcher:
        return self.dispatcher(entry.queue_key)

    # Names.

    def _by_name(self, key: Key) -> TrackedTask | None:
        uid = self._uid_of(key)
        return None if uid is None else self._entries.get(uid)

    def _is_named(self, task: Task) -> bool:
        """Whether the informer has no other Task under the name of this one."""
        return self._uid_of((task.namespace, task.name)) in (None, task.uid)

    def _reconcile_named(self, keys: Iterable[Key]) -> None:
        for key in keys:
            entry = self._by_name(key)
            if entry is not None:
                self._reconciler.reconcile(entry)

    def _dependencies_of(self, entry: TrackedTask) -> DependencyState:
        return self.dependencies.state_of(entry.task)


def _is_unfinished(raw: Mapping[str, Any] | None) -> bool:
    if raw is None:
        return False
    return not Phase((raw.get("status") or {}).get("phase", Phase.PENDING)).terminal
