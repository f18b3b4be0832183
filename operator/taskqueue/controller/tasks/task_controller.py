"""All unfinished Tasks, from the informer that shows them to the status that ends them.

Here the parts that serve a Task are put together: the machine decides, the runner executes,
dispatchers publish, the inbox reads what workers report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, Protocol

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.outcome import AttemptEvent
from taskqueue.controller.completions.publisher import CompletionPublisher
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.metrics import TASKS_HELD, remove_task_counters
from taskqueue.controller.tasks import effects, events
from taskqueue.controller.tasks.batch_items import BatchItems
from taskqueue.controller.tasks.command_record import Owed
from taskqueue.controller.tasks.dependencies import Dependencies
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.inbox import Inbox, QueueListener
from taskqueue.controller.tasks.others_tasks import OthersTasks
from taskqueue.controller.tasks.payloads import Payloads, size_problem
from taskqueue.controller.tasks.present_task import read_present
from taskqueue.controller.tasks.read_pool import Spawn
from taskqueue.controller.tasks.runner import MessageSource, TaskRunner, acknowledge
from taskqueue.controller.tasks.tracked_task import SeenTask, TaskStage, TrackedTask
from taskqueue.kubernetes.client import ApiClient, version_of
from taskqueue.kubernetes.informer import Key, identity
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.kubernetes.task_codec import (
    problem_of,
    read_outline,
    read_payload,
    read_task,
)
from taskqueue.limits import PAYLOAD_CACHE_BYTES
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Task, TaskState
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Tasks reconciled in one turn of the loop: it has a Lease to renew, and 1,000 take 65 ms.
_TASKS_A_TURN = 1_000


class TaskListener(QueueListener, Protocol):
    """Serves the TaskQueues of these Tasks: the engine, which stands above this package."""

    def on_task_ended(self, tracked: TrackedTask) -> None:
        """The final status of a Task is in the API server."""

    def on_completion_published(self, tracked: TrackedTask) -> None:
        """The event about its end is with the broker, or nobody waits for it."""

    def on_end_missed(self, key: QueueKey, uid: str, *, dropped: bool) -> None:
        """The event about an end was given up, or is another's, who may not have published it."""

    def on_commands_owed(self) -> None:
        """The commands that wait for a broker, or have waited, are others now."""

    def on_status_refused(self, tracked: TrackedTask, why: str) -> None:
        """The API server refuses even the least of a Task's status."""


class TaskController:
    """Follows all unfinished Tasks; handles the events of their informer.

    Args:
        client: for the API server.
        updater: writes statuses.
        tokens: sign and judge attempts.
        listener: serves the TaskQueues.
        uid_of: returns the uid the informer shows under a name.
        synced: whether all Tasks there were at the start are known; those may have been published
            by a former leader.
        leads: whether this process certainly still leads.
        random: for the jitter of back-offs.
        spawn: runs something beside everything else.
        clock: wall time in seconds.
        payload_budget: bytes of payloads to keep in memory.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        updater: StatusUpdater,
        tokens: TokenKeys,
        listener: TaskListener,
        uid_of: Callable[[Key], str | None],
        synced: Callable[[], bool],
        leads: Callable[[], bool],
        random: Random,
        spawn: Spawn,
        clock: Clock = time.time,
        payload_budget: int = PAYLOAD_CACHE_BYTES,
    ) -> None:
        self._client = client
        self._updater = updater
        self._listener = listener
        self._uid_of = uid_of
        self._synced = synced
        self._spawn = spawn
        self._dispatchers = _Dispatchers(self._make_dispatcher)
        #: Finished Tasks the informer has yet to show leaving: what it shows of them is late.
        self._leaving: set[str] = set()
        #: Tasks that cannot be read, and of which an outline is being read.
        self._unreadable: set[str] = set()
        #: Those of TaskQueues that other installations serve.
        self.others = OthersTasks()
        self.completions = CompletionPublisher(
            on_dropped=lambda key, uid: listener.on_end_missed(key, uid, dropped=True)
        )
        self.ends = TaskEnds(self.completions, client=client, spawn=spawn)
        self.dependencies = Dependencies(
            client,
            spawn=spawn,
            is_unfinished=self._is_unfinished,
            on_change=self._on_dependencies_changed,
        )
        self.payloads = Payloads(
            client,
            task_of=self._task_of,
            spawn=spawn,
            on_loaded=self._on_payload_loaded,
            on_error_changed=self._reconcile_all,
            on_invalid=self._on_payload_invalid,
            budget=payload_budget,
        )
        self._runner = TaskRunner(
            dispatchers=self._dispatchers,
            dependencies=self.dependencies,
            payloads=self.payloads,
            updater=updater,
            ends=self.ends,
            tokens=tokens,
            leads=leads,
            clock=clock,
            random=random,
            on_end=self._on_end,
            on_forgotten=self._on_forgotten,
            on_announced=listener.on_completion_published,
            on_refused=listener.on_status_refused,
            read_object=self._start_read,
        )
        #: Sends an event to a Task, or to an item of a TaskBatch.
        self.send = self._runner.send
        self.inbox = Inbox(
            runner=self._runner,
            dispatcher_of=self._dispatchers.get,
            completions=self.completions,
            tokens=tokens,
            clock=clock,
            on_late=self._on_late,
            listener=listener,
        )
        TASKS_HELD.set_function(lambda: len(self.tasks))

    @property
    def tasks(self) -> Mapping[str, TrackedTask]:
        """The unfinished Tasks by uid."""
        return self._runner.tasks

    def serve_items(self, items: BatchItems) -> Callable[[TrackedTask], None]:
        """Have the items of TaskBatches served; return what tracks one of them."""
        self._runner.items = self.payloads.items = items
        return lambda tracked: self._runner.track(tracked, events.Seen())

    def close(self) -> None:
        """Publish nothing more, and have everything written that is known."""
        self._runner.write_scheduled()
        for dispatcher in self._dispatchers.values():
            dispatcher.close()

    # The informer.

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take a Task that is new or changed."""
        uid = raw["metadata"]["uid"]
        if uid in self._leaving:
            return
        tracked = self._runner.tasks.get(uid)
        if tracked is None and self.others.kept and self.others.keep_raw(raw):
            return
        if tracked is not None and raw["metadata"].get("generation") == tracked.task.generation:
            return  # our own write of its status, come back
        try:
            task = read_task(raw)
            payload = read_payload(raw) if tracked is None else b""  # it never changes
        except (ValueError, KeyError, TypeError) as error:  # one bad object stops no other
            self.on_unreadable(raw, problem_of(error))
            return
        self._unreadable.discard(uid)
        if tracked is not None:
            self._runner.send(uid, events.SpecChanged(task))
        elif self._is_to_track(task):
            problem = size_problem(len(payload))
            seen = SeenTask(task, version_of(raw["metadata"]), problem)
            if not problem:
                self.payloads.offer(uid, payload)
            self._track(seen)

    def adopt(self, seen: SeenTask) -> None:
        """Take a Task that was seen before this operator led; its payload is read when due."""
        if seen.queue_key in self.others:
            self.others.keep(seen)
        elif seen.task.uid not in self._runner.tasks and self._is_to_track(seen.task):
            self._track(seen)

    def _track(self, seen: SeenTask) -> None:
        task = seen.task
        tracked = TrackedTask(
            task=task,
            status=task.status,
            written=task.status,
            fence=seen.version,
            stray_copy_possible=not self._synced(),
        )
        if seen.problem:
            self._runner.track(tracked, events.PayloadRefused(seen.problem))
        else:
            self._runner.track(tracked, events.Seen())

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """End a Task that cannot be read; ``problem`` says why, and what to do."""
        (namespace, name), uid = identity(raw)
        tracked = self._runner.tasks.get(uid)
        if uid in self._leaving or uid in self._unreadable:
            return
        if tracked is not None and raw["metadata"].get("generation") == tracked.task.generation:
            return  # only its status has changed
        log.error("task.unreadable", namespace=namespace, task=name, uid=uid, error=problem)
        found = events.FoundUnreadable(
            f"the operator cannot read this Task: {problem}, and create it again"
        )
        if tracked is not None:
            self._runner.send(uid, found)
        else:
            self._unreadable.add(uid)
            work = self._end_unreadable((namespace, name), uid, found, raw["metadata"])
            self._spawn(work, f"end of {name}")

    async def _end_unreadable(
        self, key: Key, uid: str, event: events.FoundUnreadable, metadata: Mapping[str, Any]
    ) -> None:
        def on_refused(why: str) -> None:
            task = read_outline({"metadata": metadata})
            tracked = TrackedTask(task=task, status=task.status, written=task.status)
            why = f"{event.message}; nor can what is needed to end it be read: {why}"
            self._listener.on_status_refused(tracked, why)

        found = await read_present(self._client, *key, uid, as_outline=True, on_refused=on_refused)
        task = None if found is None else found[0]
        if uid in self._unreadable:  # else it has become readable
            self._unreadable.discard(uid)
            if task is not None and not task.status.phase.terminal:
                tracked = TrackedTask(task=task, status=task.status, written=task.status)
                self._runner.track(tracked, event)

    def _is_to_track(self, task: Task) -> bool:
        """Return whether there is anything to do for a Task that is shown and not tracked.

        One that is being deleted was dropped; by a former leader that may not have been done.
        """
        return not (task.status.phase.terminal or (task.deleting and self._synced()))

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Take note that a Task left the informer: finished or deleted."""
        self._leaving.discard(uid)
        self.others.discard(uid)
        self._runner.send(uid, events.LeftInformer(metadata))

    def leave_queue(self, key: QueueKey) -> None:
        """Leave the Tasks of a TaskQueue alone: another installation serves it."""
        tasks = [self._runner.tasks[uid] for uid in self._dispatchers[key].uids]
        self.others.add(key, [tracked for tracked in tasks if tracked.task.index is None])
        for tracked in tasks:
            self._runner.send(tracked.uid, events.ServedElsewhere())

    def take_queue(self, key: QueueKey) -> None:
        """Track the Tasks of a TaskQueue that no other installation serves any more."""
        if key in self.others:
            self._spawn(self.others.hand_over(key, self), f"Tasks of {key[0]}/{key[1]}")

    # What became of a Task.

    def _start_read(self, tracked: TrackedTask, effect: effects.ReadObject) -> None:
        self._spawn(self._read(tracked.task, effect), f"read {tracked.task.path}")

    async def _read(self, task: Task, effect: effects.ReadObject) -> None:
        as_outline = effect.purpose is not events.ReadPurpose.STATUS_BEHIND  # which has no epoch
        found = await read_present(
            self._client, task.namespace, task.name, task.uid, as_outline=as_outline
        )
        status = None if found is None else found[0].status
        self._runner.send(task.uid, events.ObjectRead(effect.purpose, status))

    def _on_end(self, tracked: TrackedTask) -> None:
        if tracked.task.index is None:
            if not tracked.has_left_informer:
                self._leaving.add(tracked.uid)
            self._update_dependents(tracked.task, tracked.status)
        self._drop_if_idle(tracked.queue_key)
        self._listener.on_task_ended(tracked)

    def _on_forgotten(self, tracked: TrackedTask, effect: effects.Forget) -> None:
        self._drop_if_idle(tracked.queue_key)
        if tracked.task.index is not None:
            self._runner.items.on_forgotten(tracked)
        elif effect.found is not None:
            self._update_dependents(tracked.task, effect.found)
            self._listener.on_end_missed(tracked.queue_key, tracked.uid, dropped=False)
        elif self._is_named(tracked.task):
            self.dependencies.on_deleted(tracked.task)

    def _update_dependents(self, task: Task, status: TaskState) -> None:
        if self._is_named(task):
            ended = status.completion_time or 0.0
            self.dependencies.on_finished(task, status.phase, status.reason, ended)

    def _on_late(self, report: AttemptEvent, delivery: Delivery, source: MessageSource) -> None:
        self._spawn(
            self._announce_again(report, delivery, source),
            f"end of {report.namespace}/{report.task}",
        )

    async def _announce_again(
        self, report: AttemptEvent, delivery: Delivery, source: MessageSource
    ) -> None:
        """Announce an end whose outcome its leader did not live to acknowledge."""
        found = await read_present(self._client, report.namespace, report.task, report.uid)
        if found is None or not found[0].status.phase.terminal:
            acknowledge(delivery)
            return
        task, metadata = found
        ended = TrackedTask(task=task, status=task.status, written=task.status)

        def on_published() -> None:
            acknowledge(delivery)
            self._listener.on_completion_published(ended)

        dispatcher = self._dispatchers.get(ended.queue_key)
        config = None if dispatcher is None else dispatcher.config
        self.ends.publish(
            task,
            task.status,
            metadata,
            None if config is None else config.archive,
            reported=True,
            publisher=lambda: source.publisher,
            on_published=on_published,
        )

    # Queues.

    def owed_commands(self) -> Owed:
        """Return the commands that have waited for their broker and are not confirmed."""
        everyone = self._dispatchers.items()
        return {key: one.commands.owed for key, one in everyone if one.commands.owed}

    def dispatcher(self, key: QueueKey) -> Dispatcher:
        """Return the dispatcher of a queue, which need not exist."""
        return self._dispatchers[key]

    def _make_dispatcher(self, key: QueueKey) -> Dispatcher:
        return Dispatcher(
            key,
            tasks=self._runner.tasks,
            send=self._runner.send,
            clock=asyncio.get_running_loop().time,
            payloads=self.payloads,
            on_open=self.completions.publish_kept,
            on_owed=self._listener.on_commands_owed,
            clogged=self._updater.clogged,
        )

    def on_queue_changed(self, key: QueueKey) -> None:
        """Reconcile the Tasks of a TaskQueue that is new, changed, or gone."""
        uids = list(self._dispatchers[key].uids)
        if len(uids) > _TASKS_A_TURN:
            uids.sort(key=self._turn_of)  # the first to be dispatched must not come last
        self._reconcile_all(uids)
        self._drop_if_idle(key)

    def _turn_of(self, uid: str) -> tuple[int, float]:
        task = self._runner.tasks[uid].task
        return -task.spec.priority, task.created

    def _reconcile_all(self, uids: Sequence[str], start: int = 0) -> None:
        """Reconcile these Tasks, so many in each turn of the loop."""
        end = start + _TASKS_A_TURN
        for uid in uids[start:end]:
            self._runner.send(uid, events.EnvironmentChanged())
        if end < len(uids):
            asyncio.get_running_loop().call_soon(self._reconcile_all, uids, end)

    def _drop_if_idle(self, key: QueueKey) -> None:
        """Let go of the dispatcher of a queue that does not exist and has no Task."""
        dispatcher = self._dispatchers.get(key)
        if dispatcher is not None and dispatcher.config is None and dispatcher.is_empty:
            del self._dispatchers[key]
            remove_task_counters(key)

    # Names.

    def _by_name(self, key: Key) -> TrackedTask | None:
        uid = self._uid_of(key)
        return None if uid is None else self._runner.tasks.get(uid)

    def _is_unfinished(self, key: Key) -> bool:
        return self._by_name(key) is not None

    def _is_named(self, task: Task) -> bool:
        """Return whether no other Task is shown under the name of this one."""
        return self._uid_of((task.namespace, task.name)) in (None, task.uid)

    def _on_dependencies_changed(self, keys: Iterable[Key]) -> None:
        found = (self._by_name(key) for key in keys)
        self._reconcile_all([tracked.uid for tracked in found if tracked is not None])

    # Payloads.

    def _task_of(self, uid: str) -> Task | None:
        tracked = self._runner.tasks.get(uid)
        return None if tracked is None or tracked.stage is TaskStage.FINISHED else tracked.task

    def _on_payload_loaded(self, uid: str) -> None:
        self._dispatchers[self._runner.tasks[uid].queue_key].on_payload_loaded(uid)

    def _on_payload_invalid(self, uid: str, problem: str) -> None:
        self._runner.send(uid, events.PayloadRefused(problem))


class _Dispatchers(dict[QueueKey, Dispatcher]):
    """The dispatchers of all queues; that of a queue is made when it is first asked for."""

    def __init__(self, make: Callable[[QueueKey], Dispatcher]) -> None:
        self._make = make

    def __missing__(self, key: QueueKey) -> Dispatcher:
        dispatcher = self[key] = self._make(key)
        return dispatcher
