"""Keeps the status of each Task, and makes one write of it for most.

Contract:

* A final status is written at once. Any other is written when it is two seconds old and still
  true, so that a short Task costs one write in all; but one that takes an attempt back, or claims
  a concurrency key, is written before anything is done about it.
* An outcome is acknowledged only when a write that contains it has succeeded, and an event that
  tells of its end, if it is the end, has been published.
* A status the API server refuses for good is written in short, and looked after if even that is
  refused: no outcome is lost over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.publisher import Publisher
from taskqueue.contract.command import CommandKind
from taskqueue.controller.completions.publisher import CompletionPublisher
from taskqueue.controller.metrics import STATUS_WRITES, TASKS_FINISHED
from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.admission import Dispatched
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask, log_fields
from taskqueue.kubernetes.status_updater import Fate, StatusUpdater, WriteRefused
from taskqueue.kubernetes.task_codec import status_patch, status_path
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import MESSAGE_LIMIT, Phase, ProgressState, TaskState
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: How long an unfinished status must hold before it is worth a write.
SETTLE_SECONDS = 2.0
#: A worker reports `task.started` when an attempt has run this long.
STARTED_AFTER_SECONDS = 0.5
#: A worker's word for a handler it does not know, and a Task's reason while none does.
UNKNOWN_HANDLER = "UnknownHandler"
#: How long until a Task whose handler no worker knew is tried again.
HANDLER_SECONDS = 5.0
#: How long until an attempt that a worker stopped by itself is published again.
RETRACTED_SECONDS = 1.0


class TaskTransitions:
    """See the module's contract; the `dispatcher.Ledger` of the dispatchers.

    Args:
        entries: the unfinished Tasks by uid; finished ones are removed from it here.
        dispatcher_of: the queue's dispatcher of a Task.
        writer: writes statuses.
        announcer: tells everybody of ends.
        clock: wall time in seconds.
        random: for the jitter of back-offs.
        look: decides anew what is to be done with a Task.
        on_recorded: called with each Task whose final status is in the API server.
        on_told: called with it once its end has been announced, if a worker reported that; a
            leader that ends before is told again, and looks the Task up.
        on_refused: called with a Task whose status is refused for good: it looks whether there
            is still such a Task, and calls `forget` or `write_again`.
    """

    def __init__(
        self,
        *,
        entries: dict[str, TrackedTask],
        dispatcher_of: Callable[[TrackedTask], Dispatcher],
        writer: StatusUpdater,
        announcer: CompletionPublisher,
        clock: Clock,
        random: Random,
        look: Callable[[TrackedTask], None],
        on_recorded: Callable[[TrackedTask], None],
        on_told: Callable[[TrackedTask], None],
        on_refused: Callable[[TrackedTask], None],
    ) -> None:
        self._entries = entries
        self._dispatcher_of = dispatcher_of
        self._writer = writer
        self._announcer = announcer
        self._clock = clock
        self._random = random
        self._look = look
        self._on_recorded = on_recorded
        self._on_told = on_told
        self._on_refused = on_refused

    # What workers report.

    def started(
        self, entry: TrackedTask, *, attempt: int, worker: str, ago: float = STARTED_AFTER_SECONDS
    ) -> None:
        """Take note that an attempt runs, and has for ``ago`` seconds."""
        begun = self._clock() - ago
        entry.delivered_at = begun
        if attempt >= entry.status.current_attempt:
            self.change(
                entry,
                lifecycle.started(entry.status, attempt=attempt, now=begun, worker=worker),
                settle=SETTLE_SECONDS - STARTED_AFTER_SECONDS,
            )

    def runs(self, entry: TrackedTask, *, worker: str) -> None:
        """Take note that a worker runs the present attempt, if that is not known."""
        if entry.status.phase is not Phase.RUNNING and entry.stage is TaskStage.PUBLISHED:
            attempt = entry.status.current_attempt
            self.started(entry, attempt=attempt, worker=worker, ago=0.0)  # at least

    def progressed(self, entry: TrackedTask, progress: ProgressState) -> None:
        """Take how far a running attempt says it is."""
        self.change(entry, lifecycle.progressed(entry.status, progress))

    def succeeded(
        self,
        entry: TrackedTask,
        ended: AttemptEnd,
        result: dict[str, object] | None,
        outcome: Delivery,
    ) -> None:
        """Take a success."""
        entry.outcomes.append(outcome)
        self._finish(entry, lifecycle.succeeded(entry.status, ended, result=result))

    def failed(
        self, entry: TrackedTask, ended: AttemptEnd, failure: AttemptFailure, outcome: Delivery
    ) -> None:
        """Take a failed attempt: the Task is tried again, or has failed."""
        entry.outcomes.append(outcome)
        status = lifecycle.failed(
            entry.status,
            ended,
            failure,
            policy=self._dispatcher_of(entry).policy(entry),
            random=self._random.random(),
        )
        if status.phase.terminal:
            self._finish(entry, status)
        else:
            self._go_on(entry, status)

    def released(self, entry: TrackedTask, word: Delivery) -> None:
        """Publish an attempt again that a worker gave back; its token stays good.

        Not so with a concurrency key: this word may come twice, and the second must not have the
        Task run beside itself. It is claimed anew, so that the number that fences it off grows.
        """
        self._settle_word(entry, word)
        again = lifecycle.taken_back if entry.key else lifecycle.released
        self.change(entry, again(entry.status))
        self._dispatcher_of(entry).submit(entry)
        self._look(entry)

    def retracted(self, entry: TrackedTask, word: Delivery) -> None:
        """Publish an attempt again that a worker stopped, by an order nobody knows any more.

        Workers remember the order by the token, so the attempt needs another. Not at once: the
        worker may be one that stops whatever it gets.
        """
        entry.hold_until = self._clock() + RETRACTED_SECONDS
        self._settle_word(entry, word)
        self._go_on(entry, lifecycle.taken_back(entry.status))

    def handler_unknown(self, entry: TrackedTask, message: str, word: Delivery) -> None:
        """Try again later, uncounted: the workers that know the handler may be on their way."""
        entry.hold_until = self._clock() + HANDLER_SECONDS
        self._settle_word(entry, word)
        self._go_on(
            entry,
            lifecycle.blocked(
                lifecycle.unclaimed(lifecycle.released(entry.status)),
                reason=UNKNOWN_HANDLER,
                message=f"spec.handler: {message}: roll out workers that know it, and the Task "
                "goes on, or create a Task with another handler",
            ),
        )

    # What the operator decides.

    def end(self, entry: TrackedTask, status: TaskState) -> None:
        """Give a Task its final status without a worker's word, and stop what may still run."""
        if entry.stage is TaskStage.FINISHED:
            return
        if entry.dispatched is not Dispatched.NO:
            self._stop_worker(entry)
        self._finish(entry, status)

    def take_back(self, entry: TrackedTask, status: TaskState) -> None:
        """Take a dispatched attempt back: first the raised epoch is written, then its worker told.

        An order must not outlive its cause: a leader that did not know of the epoch would publish
        the same token again, which no worker runs any more.
        """
        self._order_after_write(entry, CommandKind.RELEASE)
        self._dispatcher_of(entry).linger(entry)
        entry.status = status
        self._dispatcher_of(entry).hold(entry)
        self._write(entry, urgent=True)

    def change(self, entry: TrackedTask, status: TaskState, settle: float = SETTLE_SECONDS) -> None:
        """Give a Task another unfinished status, to be written if it lasts."""
        entry.status = status
        if entry.flush is None and status != entry.written:
            loop = asyncio.get_running_loop()
            entry.flush = loop.call_later(settle, self._flush, entry)

    def flush(self) -> None:
        """Write what waits to be worth a write: this process ends, and knows it alone."""
        for entry in self._entries.values():
            if entry.flush is not None:
                entry.flush.cancel()
                self._flush(entry)

    def forget(self, entry: TrackedTask) -> None:
        """Let go of a Task that is no longer in the API server, or finished there."""
        if entry.dispatched is not Dispatched.NO:
            self._stop_worker(entry)
        entry.stop_timers()
        self._dispatcher_of(entry).withdraw(entry, finished=False)
        self._after_write(entry, written=None)
        entry.acknowledge()
        entry.stage = TaskStage.FINISHED
        self._entries.pop(entry.task.uid, None)

    def write_again(self, entry: TrackedTask) -> None:
        """Write the status of a Task that is still there and still unfinished."""
        if entry.task.uid in self._entries:
            self._write(entry, urgent=True)

    # What dispatchers find out.

    def opened(self, key: QueueKey, publisher: Publisher) -> None:
        """Tell what could not be told while the broker was away."""
        self._announcer.opened(key, publisher)

    def claim(self, entry: TrackedTask) -> None:
        """Record that a Task holds its concurrency key, then have it published."""
        entry.status = lifecycle.claimed(entry.status, key=entry.key)
        self._write(entry, urgent=True)

    def parked(self, entry: TrackedTask) -> None:
        """Say that a Task waits for its concurrency key."""
        self.change(
            entry,
            lifecycle.blocked(
                entry.status,
                reason="ConcurrencyLimit",
                message=f"spec.concurrencyKey: as many Tasks of key {entry.key} are dispatched as "
                "the TaskQueue's spec.concurrencyLimits.perKey allows",
            ),
        )

    def silent(self, entry: TrackedTask, since: float) -> None:
        """Count an attempt as failed whose worker says nothing any more."""
        log.warning("attempt.silent", **log_fields(entry.task, worker=entry.status.worker))
        if entry.unsure and entry.status.phase is not Phase.RUNNING:
            # Perhaps nobody ever had it: that is no failed attempt. No worker begins it any more.
            self._order_after_write(entry, CommandKind.RELEASE)
            self._go_on(entry, lifecycle.taken_back(entry.status))
            self._write(entry, urgent=True)
            return
        status = lifecycle.silent(
            entry.status,
            now=self._clock(),
            start=since,
            policy=self._dispatcher_of(entry).policy(entry),
            random=self._random.random(),
        )
        if status.phase.terminal:
            self.end(entry, status)
            return
        self._order_after_write(entry, CommandKind.CANCEL)
        self._dispatcher_of(entry).linger(entry)
        self._go_on(entry, status)
        self._write(entry, urgent=True)

    # Inside.

    def _finish(self, entry: TrackedTask, status: TaskState) -> None:
        entry.stop_timers()
        entry.status = status
        self._dispatcher_of(entry).withdraw(entry, finished=True)
        entry.stage = TaskStage.FINISHED
        self._write(entry, urgent=True)

    @staticmethod
    def _settle_word(entry: TrackedTask, word: Delivery) -> None:
        """Acknowledge what changes nothing but, perhaps, who holds a concurrency key.

        Then it must come again if this process ends before the key is given back on record.
        """
        if entry.key:
            entry.outcomes.append(word)
        else:
            ack(word)

    def _go_on(self, entry: TrackedTask, status: TaskState) -> None:
        """The attempt is over, the Task is not."""
        self.change(entry, status)
        self._dispatcher_of(entry).hold(entry)
        self._look(entry)

    def _stop_worker(self, entry: TrackedTask) -> None:
        dispatcher = self._dispatcher_of(entry)
        dispatcher.linger(entry)
        dispatcher.order(CommandKind.CANCEL, dispatcher.token(entry), entry.task.uid)

    def _order_after_write(self, entry: TrackedTask, kind: CommandKind) -> None:
        """Have the present attempt stopped as soon as a higher epoch is in the API server."""
        dispatcher = self._dispatcher_of(entry)
        token, uid = dispatcher.token(entry), entry.task.uid
        entry.after_write += ((entry.status.epoch + 1, lambda: dispatcher.order(kind, token, uid)),)

    def _after_write(self, entry: TrackedTask, written: TaskState | None) -> None:
        """Do what waited for a write; all of it when nothing will be written any more."""
        due = entry.after_write
        if written is None or written.phase.terminal:
            entry.after_write = ()
        else:
            entry.after_write = tuple(one for one in due if one[0] > written.epoch)
        for one in due:
            if one not in entry.after_write:
                one[1]()

    def _flush(self, entry: TrackedTask) -> None:
        entry.flush = None
        if entry.stage is TaskStage.FINISHED:
            return
        if entry.status == entry.written and not entry.outcomes:
            return
        self._write(entry, urgent=False)

    def _write(self, entry: TrackedTask, *, urgent: bool) -> None:
        status, contained = entry.status, list(entry.outcomes)
        self._writer.put(
            status_path(entry.task),
            status_patch(entry.task, status, now=self._clock()),
            lambda fate: self._settled(entry, status, contained, fate),
            urgent=urgent,
        )

    def _settled(
        self, entry: TrackedTask, status: TaskState, contained: list[Delivery], fate: Fate
    ) -> None:
        if isinstance(fate, WriteRefused):
            self._refused(entry, status, fate)
            return
        STATUS_WRITES.inc()
        entry.written = status
        self._after_write(entry, status)
        if status.phase.terminal:
            self._ended(entry, status, contained, fate.generation)
            return
        for delivery in [one for one in entry.outcomes if one in contained]:
            ack(delivery)  # a second time would close the channel
            entry.outcomes.remove(delivery)
        if entry.stage is not TaskStage.FINISHED:
            self.change(entry, entry.status)  # it may have changed back while this was written
        if entry.stage is TaskStage.CLAIMING and status.concurrency_key == entry.key:
            self._dispatcher_of(entry).claimed(entry, fate.version)

    def _ended(
        self, entry: TrackedTask, status: TaskState, contained: list[Delivery], generation: int
    ) -> None:
        if generation > entry.task.generation:
            # The spec was changed just before: a final status must speak of the last generation,
            # or `kubectl wait` does not believe it.
            entry.task = replace(entry.task, generation=generation)
            self._write(entry, urgent=True)
            return
        outcomes, entry.outcomes = entry.outcomes, []
        entry.stop_timers()
        self._entries.pop(entry.task.uid, None)
        TASKS_FINISHED.labels(*entry.queue_key, status.phase.value).inc()
        self._announcer.finished(
            entry.task,
            status,
            reported=bool(outcomes),
            publisher=self._publisher(entry),
            on_announced=lambda: self._told(entry, outcomes),
        )
        self._on_recorded(entry)
        if not outcomes:
            self._on_told(entry)

    def _told(self, entry: TrackedTask, outcomes: list[Delivery]) -> None:
        for delivery in outcomes:
            ack(delivery)
        if outcomes:
            self._on_told(entry)

    def _publisher(self, entry: TrackedTask) -> Publisher | None:
        """Return what reaches the queue's broker, or the one its outcome came from."""
        own = self._dispatcher_of(entry).publisher
        return entry.source.publisher if own is None and entry.source is not None else own

    def _refused(self, entry: TrackedTask, status: TaskState, fate: WriteRefused) -> None:
        fields = log_fields(entry.task, problem=fate.message)
        if fate.status == 404 or entry.reduced:
            log.error("status.refused", **fields)
            self._on_refused(entry)
            return
        if status is not entry.status:
            if entry.stage is not TaskStage.FINISHED:
                self.change(entry, entry.status)
            return  # what is true now is written by itself
        log.warning("status.reduced", **fields)
        entry.reduced = True
        entry.status = replace(
            status,
            result=None,
            # The last attempt stays: the next one's number follows from it.
            history=tuple(replace(one, worker="", message="") for one in status.history[-1:]),
            worker="",
            message="recorded in short, because the API server refused the full status: "
            f"{fate.message}"[:MESSAGE_LIMIT],
        )
        self._write(entry, urgent=status.phase.terminal)


def ack(delivery: Delivery) -> None:
    """Acknowledge a delivery."""
    delivery.channel.ack(delivery.delivery_tag)
