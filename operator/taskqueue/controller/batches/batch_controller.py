"""All unfinished TaskBatches, from the informer that shows them to their final statuses.

Contract:

* An item is a Task without an object, and the same machine decides for it. At most a window of
  items are on their way at once, so memory does not grow with their number; see `window`.
* What becomes of items is on record once a flush has written it, at most once a second; outcomes
  are acknowledged after that. A restart goes on from the record: what had ended since the last
  flush and is still in the inbox counts, what was published is published again with its token.
* A recall of items is flushed, with its raised epoch, before workers are commanded.
* A batch whose items cannot be read, or whose status cannot be written, does not hold up another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from taskqueue.controller.batches import decisions
from taskqueue.controller.batches.decisions import ITEMS_NOT_FOUND, Problem, Situation
from taskqueue.controller.batches.finished_batches import FinishedBatches
from taskqueue.controller.batches.item_reader import read_items
from taskqueue.controller.batches.items import CountedItems, InvalidItemsError, Items, inline_items
from taskqueue.controller.batches.progress import BatchProgress, ItemEnd
from taskqueue.controller.batches.recorder import BatchRecorder, written
from taskqueue.controller.batches.tracked_batch import TrackedBatch
from taskqueue.controller.batches.window import LARGEST_WINDOW, MeanRun, items_window
from taskqueue.controller.metrics import BATCH_ITEMS_WAITING, BATCHES_FINISHED, BATCHES_HELD
from taskqueue.controller.tasks import events
from taskqueue.controller.tasks.effects import WriteStatus
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.kubernetes.batch_codec import batch_path, read_batch, read_inline, read_state
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.informer import Key, identity
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.logs import EventLog
from taskqueue.model.batch import Batch, BatchState
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Phase, Task, TaskState
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: From one look at all batches to the next, in seconds.
_LOOK_SECONDS = 1.0
#: Items that wait for something, such as their next attempt, beside those on their way.
MOST_HELD = 1_000
#: Ends that are not on record; with more, no item begins: the API server does not follow.
_MOST_UNRECORDED = 5_000
#: From one try to read a ConfigMap, or a batch, to the next, in seconds.
_READ_AGAIN_SECONDS = 5.0
#: Where an item is on its way to a worker, or with one.
_GOING = (TaskStage.WAITING, TaskStage.CLAIMING, TaskStage.PUBLISHED)

OnEnded = Callable[[Batch, BatchState], None]


class BatchController:
    """Serves all TaskBatches while `run` is running; handles the events of their informer.

    Args:
        client: for the API server.
        updater: writes statuses.
        tasks: tracks the items.
        clock: wall time in seconds.
        on_ended: called with a batch whose final status is in the API server.
    """

    def __init__(
        self,
        client: ApiClient,
        updater: StatusUpdater,
        tasks: TaskController,
        *,
        clock: Clock,
        on_ended: OnEnded = lambda *_: None,
    ) -> None:
        self._client = client
        self._tasks = tasks
        self._clock = clock
        self._on_ended = on_ended
        self._track = tasks.serve_items(self)
        self._recorder = BatchRecorder(
            updater,
            clock=clock,
            send=tasks.send,
            going=self._going,
            on_refused=self._on_refused,
            on_ended=self._on_batch_ended,
        )
        self._tracked: dict[str, TrackedBatch] = {}
        self._queues: dict[QueueKey, dict[str, TrackedBatch]] = {}
        self._runs: dict[QueueKey, MeanRun] = {}
        self._planned: set[QueueKey] = set()
        self._group: asyncio.TaskGroup | None = None
        self._finished = FinishedBatches(client, clock=clock, default_ttl=self._default_ttl)
        #: What a former leader published may be at the broker: all batches shown by now.
        self.is_taking_over = True
        BATCHES_HELD.set_function(lambda: len(self._tracked))
        BATCH_ITEMS_WAITING.set_function(
            lambda: sum(one.progress.unbegun for one in self._tracked.values() if one.progress)
        )

    def __len__(self) -> int:
        return len(self._tracked)

    async def load(self) -> None:
        """Return when the items of each batch are known, or cannot be at the moment."""
        for tracked in self._tracked.values():
            self._load_if_due(tracked)
        loads = [one.loading for one in self._tracked.values() if one.loading is not None]
        if loads:
            await asyncio.wait(loads)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._finished.run(), name="batches: time to live")
            while True:
                for key in list(self._queues):
                    self._look_safely(key)
                await asyncio.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Put on its way what is known and not written."""
        for tracked in self._tracked.values():
            if tracked.pending:
                self._recorder.flush(tracked)

    # The informer.

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take a batch that is new or changed."""
        try:
            batch = read_batch(raw)
            tracked = self._tracked.get(batch.uid)
            state = read_state(raw) if tracked is None else tracked.state
        except (ValueError, KeyError, TypeError) as error:  # one bad object stops no other
            self.on_unreadable(raw, str(error))
            return
        if tracked is None:
            if state.phase.terminal or batch.deleting:
                self._finished.put(batch, state)
            else:
                self._add(batch, state, raw)
        elif batch.deleting:
            self._discard(tracked)
        elif batch.generation != tracked.batch.generation:
            tracked.batch = batch
            self._change_items(tracked)
            self._plan(batch.queue_key)

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Leave out a batch that cannot be read: the API server has let it pass all the same."""
        (namespace, name), uid = identity(raw)
        log.error("batch.unreadable", namespace=namespace, batch=name, uid=uid, error=problem)

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Stop the items of a batch that was deleted."""
        self._finished.discard(uid)
        tracked = self._tracked.get(uid)
        if tracked is not None:
            log.info("batch.deleted", namespace=key[0], batch=key[1], uid=uid)
            self._discard(tracked)

    def _discard(self, tracked: TrackedBatch) -> None:
        """Serve a batch no more; nothing of it can be recorded."""
        pending, tracked.pending = tracked.pending, []
        self._remove(tracked)
        self._change_items(tracked)
        self._recorder.settle(tracked, pending)

    def _add(self, batch: Batch, state: BatchState, raw: dict[str, Any]) -> None:
        tracked = TrackedBatch(batch, state, sent=state)
        self._tracked[batch.uid] = tracked
        self._queues.setdefault(batch.queue_key, {})[batch.uid] = tracked
        log.info("batch.added", namespace=batch.namespace, batch=batch.name, uid=batch.uid)
        if batch.count is not None:
            self._use(tracked, CountedItems(batch.count))
        elif batch.items_from is None:
            try:
                self._use(tracked, inline_items(read_inline(raw)))
            except InvalidItemsError as error:
                tracked.invalid = Problem("Invalid", str(error))
        self._plan(batch.queue_key)

    # Items.

    def _use(self, tracked: TrackedBatch, items: Items) -> None:
        """Go on with a batch whose items are known now."""
        record, total = tracked.state.record, len(items)
        try:
            progress = BatchProgress(total) if record is None else BatchProgress.restore(record)
        except ValueError as error:
            tracked.invalid = Problem("Invalid", f"status: {error}: create the TaskBatch again")
            return
        tracked.progress, tracked.unresolved = progress, None
        digest = tracked.state.digest
        if record is not None and (record.total, digest) != (total, items.digest):
            tracked.invalid = Problem(
                "ItemsChanged",
                f"the items were changed after the TaskBatch had begun with {record.total}, there "
                f"are {total} now: create a new TaskBatch for what is left",
            )
            return
        tracked.items = items
        tracked.state = replace(tracked.state, digest=items.digest)
        if self.is_taking_over:
            tracked.stray_below = progress.begun + LARGEST_WINDOW + _MOST_UNRECORDED

    def _load_if_due(self, tracked: TrackedBatch) -> None:
        now = asyncio.get_running_loop().time()
        known = tracked.items is not None or tracked.invalid is not None
        is_due = tracked.loading is None and now >= tracked.waits_until
        if not known and is_due and self._group is not None:
            name = f"items of {tracked.batch.path}"
            tracked.loading = self._group.create_task(self._load(tracked), name=name)

    async def _load(self, tracked: TrackedBatch) -> None:
        source = tracked.batch.items_from
        try:
            if source is not None:
                found = await read_items(self._client, tracked.batch, source)
                if isinstance(found, Problem):
                    tracked.unresolved = found
                else:
                    self._use(tracked, found)
        except InvalidItemsError as error:
            tracked.invalid = Problem("Invalid", str(error))
        except Exception as error:  # whatever one batch causes, the others are served
            log.error("batch.load_failed", exc_info=error, batch=tracked.batch.path)
            tracked.unresolved = Problem(ITEMS_NOT_FOUND, f"spec.itemsFrom: {error!r}")
        finally:
            tracked.loading = None
            tracked.waits_until = asyncio.get_running_loop().time() + _READ_AGAIN_SECONDS
        self._plan(tracked.batch.queue_key)

    def _change_items(self, tracked: TrackedBatch) -> None:
        """Have the items that are tracked follow what the batch asks for now."""
        for index, uid in list(tracked.uids.items()):
            self._tasks.send(uid, events.SpecChanged(tracked.item(index)))

    # For the parts that serve Tasks; see `taskqueue.controller.tasks.batch_items`.

    def adopt(self, uid: str) -> bool:
        """Track an item that a former leader has published; return whether it has not ended."""
        batch_uid, _, number = uid.rpartition("/")
        tracked = self._tracked.get(batch_uid)
        if tracked is None or tracked.progress is None or not tracked.is_ready:
            return False
        if not number.isdecimal() or not tracked.progress.begin(int(number)):
            return False
        self._track(tracked.begin(int(number), tracked.progress.epoch))
        return True

    def payload(self, task: Task) -> bytes:
        """Return the payload of an item."""
        tracked = self._of_item(task)
        if tracked is None or tracked.items is None or task.index is None:
            raise LookupError(f"the items of TaskBatch {task.path} are not known")
        return tracked.items.payload(task.index)

    def write(self, item: TrackedTask, effect: WriteStatus) -> None:
        """Record what became of an item with the next flush."""
        task, status = item.task, effect.status
        tracked = self._of_item(task)
        if tracked is None or tracked.progress is None or task.index is None:
            self._tasks.send(task.uid, written(effect))  # nobody has a record of it any more
            return
        if status.phase.terminal:
            tracked.uids.pop(task.index, None)
            self._end(tracked, task.index, status)
        if status.epoch > tracked.progress.epoch:
            tracked.progress.epoch = status.epoch
            tracked.is_urgent = True
        tracked.pending.append((task.uid, effect))
        tracked.unrecorded += 1
        self._plan(item.queue_key)

    def on_forgotten(self, item: TrackedTask) -> None:
        """Have an item begin again in its turn."""
        tracked = self._of_item(item.task)
        if tracked is not None and tracked.progress is not None and item.task.index is not None:
            tracked.uids.pop(item.task.index, None)
            tracked.progress.give_back(item.task.index)

    def _of_item(self, task: Task) -> TrackedBatch | None:
        return self._tracked.get(task.uid.rpartition("/")[0])

    def _end(self, tracked: TrackedBatch, index: int, status: TaskState) -> None:
        progress = tracked.progress
        if progress is None:
            return
        if status.phase is Phase.CANCELLED:
            progress.give_back(index)  # its batch is over, and counts it as cancelled
            return
        succeeded = status.phase is Phase.SUCCEEDED
        last = status.history[-1] if status.history else None
        if last is not None:
            runs = self._runs.setdefault(tracked.batch.queue_key, MeanRun())
            runs.add(last.finish_time - last.start_time)
        if succeeded or last is None:
            error, message = status.reason, status.message
        else:
            error, message = last.reason or status.reason, last.message or status.message
        attempts = status.attempts
        end = ItemEnd(succeeded=succeeded, attempts=attempts, error=error, message=message)
        progress.end(index, end)

    # What is due.

    def _plan(self, key: QueueKey) -> None:
        """Look at the batches of a queue in the next turn of the loop."""
        if key not in self._planned:
            self._planned.add(key)
            asyncio.get_running_loop().call_soon(self._look_safely, key)

    def _look_safely(self, key: QueueKey) -> None:
        self._planned.discard(key)
        try:
            self._advance_batches(key)
        except Exception as error:  # whatever one queue causes, the others are served
            log.error("batch.look_failed", exc_info=error, namespace=key[0], queue=key[1])

    def _advance_batches(self, key: QueueKey) -> None:
        """Do what is due for the batches of a queue."""
        everyone = list(self._queues.get(key, {}).values())
        if not everyone or key in self._tasks.others:
            return
        everyone.sort(key=lambda one: (-one.batch.priority, one.batch.created, one.uid))
        has_queue = self._tasks.dispatcher(key).config is not None
        for tracked in everyone:
            self._load_if_due(tracked)
            self._decide(tracked, has_queue=has_queue)
        self._begin_items(key, everyone)
        for tracked in everyone:
            self._recorder.flush_if_due(tracked)

    def _decide(self, tracked: TrackedBatch, *, has_queue: bool) -> None:
        before = tracked.state
        situation = Situation(
            now=self._clock(),
            has_queue=has_queue,
            invalid=tracked.invalid,
            unresolved=tracked.unresolved,
            held=self._held(tracked),
        )
        tracked.state = decisions.decide(tracked.batch, before, tracked.progress, situation)
        if tracked.state.phase.terminal and not before.phase.terminal:
            self._change_items(tracked)

    def _held(self, tracked: TrackedBatch) -> Problem | None:
        """Return what all items wait for that have begun; None: one is on its way, or none has."""
        found = None
        for uid in tracked.uids.values():
            item = self._tasks.tasks.get(uid)
            if item is None or item.stage in _GOING:
                return None
            if item.status.phase is Phase.BLOCKED:
                found = found or Problem(item.status.reason, item.status.message)
        return found

    def _begin_items(self, key: QueueKey, everyone: list[TrackedBatch]) -> None:
        """Begin as many items as the window of a queue has room for, batch after batch."""
        dispatcher = self._tasks.dispatcher(key)
        if dispatcher.config is not None:
            runs = self._runs.get(key)
            window = items_window(
                slots=dispatcher.slots,
                mean_run_seconds=None if runs is None else runs.seconds,
                max_published=dispatcher.config.max_published,
            )
            room = window - sum(map(self._going, everyone))
            for tracked in everyone:
                room -= self._begin_some(tracked, room, window)
        before = dispatcher.unbegun
        dispatcher.unbegun = sum(
            one.progress.unbegun
            for one in everyone
            if one.progress is not None and one.is_ready and decisions.may_begin(one.state)
        )
        if dispatcher.unbegun > before:
            dispatcher.on_backlog()

    def _begin_some(self, tracked: TrackedBatch, room: int, window: int) -> int:
        progress = tracked.progress
        if progress is None or not tracked.is_ready or not decisions.may_begin(tracked.state):
            return 0
        most = min(window + MOST_HELD, tracked.batch.parallelism or window + MOST_HELD)
        room = min(room, most - len(tracked.uids), _MOST_UNRECORDED - tracked.unrecorded)
        for begun in range(room):
            index = progress.begin_next()
            if index is None:
                return begun
            self._track(tracked.begin(index, progress.epoch))
        return max(room, 0)

    def _going(self, tracked: TrackedBatch) -> int:
        tasks = self._tasks.tasks
        return sum(
            (item := tasks.get(uid)) is not None and item.stage in _GOING
            for uid in tracked.uids.values()
        )

    # What is on record.

    def _on_batch_ended(self, tracked: TrackedBatch) -> None:
        self._remove(tracked)
        self._finished.put(tracked.batch, tracked.state)
        BATCHES_FINISHED.labels(tracked.state.phase.value).inc()
        self._on_ended(tracked.batch, tracked.state)

    def _on_refused(self, tracked: TrackedBatch, problem: str) -> None:
        """Begin with a batch once more: its status is not what it was taken for."""
        batch = tracked.batch
        log.error("batch.status_refused", batch=batch.path, uid=batch.uid, error=problem)
        self._discard(tracked)
        if self._group is not None:
            self._group.create_task(self._read_again(batch), name=f"batch {batch.path}")

    async def _read_again(self, batch: Batch) -> None:
        while batch.uid not in self._tracked:
            await asyncio.sleep(_READ_AGAIN_SECONDS)
            try:
                raw = await self._client.get(batch_path(batch.namespace, batch.name))
            except ApiError as error:
                if error.status == 404:
                    return
                log.warning("batch.not_read", batch=batch.path, error=str(error))
                continue
            if raw["metadata"]["uid"] == batch.uid:
                self.on_upserted(raw)
            return

    def _remove(self, tracked: TrackedBatch) -> None:
        key, tracked.is_discarded = tracked.batch.queue_key, True
        del self._tracked[tracked.uid]
        del self._queues[key][tracked.uid]
        if not self._queues[key]:
            del self._queues[key]
            self._runs.pop(key, None)
            self._tasks.dispatcher(key).unbegun = 0
        self._plan(key)

    def _default_ttl(self, key: QueueKey) -> int | None:
        config = self._tasks.dispatcher(key).config
        return None if config is None else config.policy.ttl_seconds
