"""Changes the status of each Task, and writes most Tasks only once.

Contract:

* A final status is written at once. Any other is written when it is two seconds old and still
  true, so that a short Task costs one write in all. A status that recalls an attempt, or claims a
  concurrency key, is written before the operator acts on it.
* An outcome is acknowledged only when a write that contains it has succeeded and, if it ends the
  Task, its completion event is published.
* A status the API server refuses for good is written in short. If that is refused too, it is
  written again for as long as the Task exists: no outcome is lost over it.
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
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteRefused, WriteResult
from taskqueue.kubernetes.task_codec import status_patch, status_path
from taskqueue.limits import STATUS_MESSAGE_LENGTH
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Phase, ProgressState, TaskState
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: How long an unfinished status must last before it is written.
WRITE_DELAY_SECONDS = 2.0
#: A worker reports `task.started` when an attempt has run this long.
STARTED_AFTER_SECONDS = 0.5
#: Error type of a worker that does not know the handler, and the Task's reason meanwhile.
UNKNOWN_HANDLER = "UnknownHandler"
#: How long until a Task whose handler no worker knew is tried again.
UNKNOWN_HANDLER_SECONDS = 5.0
#: Pause before an attempt is published again that a worker stopped by itself.
RECALLED_PAUSE_SECONDS = 1.0


class TaskTransitions:
    """Applies events and decisions to Tasks, and writes their statuses.

    It is the `DispatchListener` of the dispatchers.

    Args:
        entries: the unfinished Tasks by uid; finished ones are removed from it here.
        dispatcher_of: the queue's dispatcher of a Task.
        updater: writes statuses.
        completions: publishes completion events.
        clock: wall time in seconds.
        random: for the jitter of back-offs.
        reconcile: decides again what to do with a Task.
        on_recorded: called with each Task whose final status is in the API server.
        on_completion_published: called with it once its completion event is published, or at once
            if no worker reported the end. A leader that ends before gets the outcome again, and
            reads the Task.
        on_refused: called with a Task whose status is refused for good. It checks whether the Task
            still exists, and calls `remove` or `rewrite`.
    """

    def __init__(
        self,
        *,
        entries: dict[str, TrackedTask],
        dispatcher_of: Callable[[TrackedTask], Dispatcher],
        updater: StatusUpdater,
        completions: CompletionPublisher,
        clock: Clock,
        random: Random,
        reconcile: Callable[[TrackedTask], None],
        on_recorded: Callable[[TrackedTask], None],
        on_completion_published: Callable[[TrackedTask], None],
        on_refused: Callable[[TrackedTask], None],
    ) -> None:
        self._entries = entries
        self._dispatcher_of = dispatcher_of
        self._updater = updater
        self._completions = completions
        self._clock = clock
        self._random = random
        self._reconcile = reconcile
        self._on_recorded = on_recorded
        self._on_completion_published = on_completion_published
        self._on_refused = on_refused

    # Worker reports.

    def on_started(
        self, entry: TrackedTask, *, attempt: int, worker: str, ago: float = STARTED_AFTER_SECONDS
    ) -> None:
        """Set the Task Running: an attempt has been running for ``ago`` seconds."""
        begun = self._clock() - ago
        entry.delivered_at = begun
        if attempt >= entry.status.current_attempt:
            self.set_status(
                entry,
                lifecycle.started(entry.status, attempt=attempt, now=begun, worker=worker),
                delay=WRITE_DELAY_SECONDS - STARTED_AFTER_SECONDS,
            )

    def on_running(self, entry: TrackedTask, *, worker: str) -> None:
        """Set the Task Running if it is not: a worker runs the present attempt."""
        if entry.status.phase is not Phase.RUNNING and entry.stage is TaskStage.PUBLISHED:
            attempt = entry.status.current_attempt
            self.on_started(entry, attempt=attempt, worker=worker, ago=0.0)  # at least

    def on_progress(self, entry: TrackedTask, progress: ProgressState) -> None:
        """Set the progress of a running attempt."""
        self.set_status(entry, lifecycle.progressed(entry.status, progress))

    def on_succeeded(
        self,
        entry: TrackedTask,
        ended: AttemptEnd,
        result: dict[str, object] | None,
        outcome: Delivery,
    ) -> None:
        """Finish the Task: its attempt succeeded."""
        entry.outcomes.append(outcome)
        self._set_final_status(entry, lifecycle.succeeded(entry.status, ended, result=result))

    def on_failed(
        self, entry: TrackedTask, ended: AttemptEnd, failure: AttemptFailure, outcome: Delivery
    ) -> None:
        """Retry the Task, or finish it as failed."""
        entry.outcomes.append(outcome)
        status = lifecycle.failed(
            entry.status,
            ended,
            failure,
            policy=self._dispatcher_of(entry).policy(entry),
            random=self._random.random(),
        )
        if status.phase.terminal:
            self._set_final_status(entry, status)
        else:
            self._end_attempt(entry, status)

    def on_released(self, entry: TrackedTask, report: Delivery) -> None:
        """Publish an attempt again that a worker released; its token stays valid.

        With a concurrency key it gets another token: this report may come twice, and the second
        must not make the Task run beside itself. The key is claimed again, so that the fence grows.
        """
        self._acknowledge_report(entry, report)
        again = lifecycle.recalled if entry.key else lifecycle.released
        self.set_status(entry, again(entry.status))
        self._dispatcher_of(entry).enqueue(entry)
        self._reconcile(entry)

    def on_recalled(self, entry: TrackedTask, report: Delivery) -> None:
        """Publish an attempt again that a worker stopped on a command nobody knows any more.

        Workers remember the command by the token, so the attempt needs another token. There is a
        pause, because the worker may be one that stops whatever it gets.
        """
        entry.hold_until = self._clock() + RECALLED_PAUSE_SECONDS
        self._acknowledge_report(entry, report)
        self._end_attempt(entry, lifecycle.recalled(entry.status))

    def on_unknown_handler(self, entry: TrackedTask, message: str, report: Delivery) -> None:
        """Try again later, uncounted: workers that know the handler may be starting."""
        entry.hold_until = self._clock() + UNKNOWN_HANDLER_SECONDS
        self._acknowledge_report(entry, report)
        self._end_attempt(
            entry,
            lifecycle.blocked(
                lifecycle.unclaimed(lifecycle.released(entry.status)),
                reason=UNKNOWN_HANDLER,
                message=f"spec.handler: {message}: roll out workers that know it, and the Task "
                "continues, or create a Task with another handler",
            ),
        )

    # Decisions of the operator.

    def finish(self, entry: TrackedTask, status: TaskState) -> None:
        """Give a Task its final status without an outcome, and stop what may still run."""
        if entry.stage is TaskStage.FINISHED:
            return
        if entry.dispatched is not Dispatched.NO:
            self._stop_worker(entry)
        self._set_final_status(entry, status)

    def recall(self, entry: TrackedTask, status: TaskState) -> None:
        """Recall a dispatched attempt: write the raised epoch, then send the command.

        A command must not outlive its cause: a leader that did not know of the epoch would publish
        the same token again, which no worker runs any more.
        """
        self._send_command_after_write(entry, CommandKind.RELEASE)
        self._dispatcher_of(entry).hold_key(entry)
        entry.status = status
        self._dispatcher_of(entry).hold(entry)
        self._write(entry, urgent=True)

    def set_status(
        self, entry: TrackedTask, status: TaskState, delay: float = WRITE_DELAY_SECONDS
    ) -> None:
        """Set another unfinished status, to be written if it lasts."""
        entry.status = status
        if entry.write_timer is None and status != entry.written:
            loop = asyncio.get_running_loop()
            entry.write_timer = loop.call_later(delay, self._flush, entry)

    def write_pending(self) -> None:
        """Write every status that waits for its delay, because this process ends."""
        for entry in self._entries.values():
            if entry.write_timer is not None:
                entry.write_timer.cancel()
                self._flush(entry)

    def remove(self, entry: TrackedTask) -> None:
        """Remove a Task that is no longer in the API server, or finished there."""
        if entry.dispatched is not Dispatched.NO:
            self._stop_worker(entry)
        entry.stop_timers()
        self._dispatcher_of(entry).withdraw(entry, finished=False)
        self._after_write(entry, written=None)
        entry.acknowledge()
        entry.stage = TaskStage.FINISHED
        self._entries.pop(entry.task.uid, None)

    def rewrite(self, entry: TrackedTask) -> None:
        """Write the status again of a Task that exists and is unfinished."""
        if entry.task.uid in self._entries:
            self._write(entry, urgent=True)

    # Callbacks of the dispatchers.

    def on_opened(self, key: QueueKey, publisher: Publisher) -> None:
        """Publish the completion events kept while the broker was away."""
        self._completions.publish_kept(key, publisher)

    def on_key_claimed(self, entry: TrackedTask) -> None:
        """Record that a Task holds its concurrency key, then have it published."""
        entry.status = lifecycle.claimed(entry.status, key=entry.key)
        self._write(entry, urgent=True)

    def on_parked(self, entry: TrackedTask) -> None:
        """Set the Task Blocked: it waits for its concurrency key."""
        self.set_status(
            entry,
            lifecycle.blocked(
                entry.status,
                reason="ConcurrencyLimit",
                message=f"spec.concurrencyKey: as many Tasks of key {entry.key} are dispatched as "
                "the TaskQueue's spec.concurrencyLimits.perKey allows",
            ),
        )

    def on_unreported(self, entry: TrackedTask, since: float) -> None:
        """Count an attempt as failed that no worker will report any more."""
        log.warning("attempt.unreported", **log_fields(entry.task, worker=entry.status.worker))
        if entry.maybe_published and entry.status.phase is not Phase.RUNNING:
            # Perhaps no worker ever had it, so it does not count as failed. The command keeps
            # workers from beginning it.
            self._send_command_after_write(entry, CommandKind.RELEASE)
            self._end_attempt(entry, lifecycle.recalled(entry.status))
            self._write(entry, urgent=True)
            return
        status = lifecycle.unreported(
            entry.status,
            now=self._clock(),
            start=since,
            policy=self._dispatcher_of(entry).policy(entry),
            random=self._random.random(),
        )
        if status.phase.terminal:
            self.finish(entry, status)
            return
        self._send_command_after_write(entry, CommandKind.CANCEL)
        self._dispatcher_of(entry).hold_key(entry)
        self._end_attempt(entry, status)
        self._write(entry, urgent=True)

    # Writing.

    def _set_final_status(self, entry: TrackedTask, status: TaskState) -> None:
        entry.stop_timers()
        entry.status = status
        self._dispatcher_of(entry).withdraw(entry, finished=True)
        entry.stage = TaskStage.FINISHED
        self._write(entry, urgent=True)

    @staticmethod
    def _acknowledge_report(entry: TrackedTask, report: Delivery) -> None:
        """Acknowledge a report that needs no write, unless the Task holds a concurrency key.

        Then it must come again if this process ends before the release of the key is written.
        """
        if entry.key:
            entry.outcomes.append(report)
        else:
            ack(report)

    def _end_attempt(self, entry: TrackedTask, status: TaskState) -> None:
        """End an attempt of a Task that goes on."""
        self.set_status(entry, status)
        self._dispatcher_of(entry).hold(entry)
        self._reconcile(entry)

    def _stop_worker(self, entry: TrackedTask) -> None:
        dispatcher = self._dispatcher_of(entry)
        dispatcher.hold_key(entry)
        dispatcher.send_command(CommandKind.CANCEL, dispatcher.token(entry), entry.task.uid)

    def _send_command_after_write(self, entry: TrackedTask, kind: CommandKind) -> None:
        """Send a command about the present attempt once a higher epoch is written."""
        dispatcher = self._dispatcher_of(entry)
        token, uid = dispatcher.token(entry), entry.task.uid
        entry.after_write += (
            (entry.status.epoch + 1, lambda: dispatcher.send_command(kind, token, uid)),
        )

    def _after_write(self, entry: TrackedTask, written: TaskState | None) -> None:
        """Run what waited for a write; all of it when nothing will be written any more."""
        due = entry.after_write
        if written is None or written.phase.terminal:
            entry.after_write = ()
        else:
            entry.after_write = tuple(one for one in due if one[0] > written.epoch)
        for one in due:
            if one not in entry.after_write:
                one[1]()

    def _flush(self, entry: TrackedTask) -> None:
        entry.write_timer = None
        if entry.stage is TaskStage.FINISHED:
            return
        if entry.status == entry.written and not entry.outcomes:
            return
        self._write(entry, urgent=False)

    def _write(self, entry: TrackedTask, *, urgent: bool) -> None:
        status, contained = entry.status, list(entry.outcomes)
        self._updater.put(
            status_path(entry.task),
            status_patch(entry.task, status, now=self._clock()),
            lambda fate: self._on_write_settled(entry, status, contained, fate),
            urgent=urgent,
        )

    def _on_write_settled(
        self, entry: TrackedTask, status: TaskState, contained: list[Delivery], fate: WriteResult
    ) -> None:
        if isinstance(fate, WriteRefused):
            self._on_write_refused(entry, status, fate)
            return
        STATUS_WRITES.inc()
        entry.written = status
        self._after_write(entry, status)
        if status.phase.terminal:
            self._on_end_written(entry, status, contained, fate.generation)
            return
        for delivery in [one for one in entry.outcomes if one in contained]:
            ack(delivery)  # a second time would close the channel
            entry.outcomes.remove(delivery)
        if entry.stage is not TaskStage.FINISHED:
            self.set_status(entry, entry.status)  # it may have changed back while this was written
        if entry.stage is TaskStage.CLAIMING and status.concurrency_key == entry.key:
            self._dispatcher_of(entry).on_claim_recorded(entry, fate.version)

    def _on_end_written(
        self, entry: TrackedTask, status: TaskState, contained: list[Delivery], generation: int
    ) -> None:
        if generation > entry.task.generation:
            # The spec was changed just before: a final status must have the last generation, or
            # `kubectl wait` ignores it.
            entry.task = replace(entry.task, generation=generation)
            self._write(entry, urgent=True)
            return
        outcomes, entry.outcomes = entry.outcomes, []
        entry.stop_timers()
        self._entries.pop(entry.task.uid, None)
        TASKS_FINISHED.labels(*entry.queue_key, status.phase.value).inc()
        self._completions.publish_task(
            entry.task,
            status,
            reported=bool(outcomes),
            publisher=self._publisher(entry),
            on_published=lambda: self._acknowledge_finished(entry, outcomes),
        )
        self._on_recorded(entry)
        if not outcomes:
            self._on_completion_published(entry)

    def _acknowledge_finished(self, entry: TrackedTask, outcomes: list[Delivery]) -> None:
        for delivery in outcomes:
            ack(delivery)
        if outcomes:
            self._on_completion_published(entry)

    def _publisher(self, entry: TrackedTask) -> Publisher | None:
        """Return the publisher of the queue's broker, or of the one its outcome came from."""
        own = self._dispatcher_of(entry).publisher
        return entry.source.publisher if own is None and entry.source is not None else own

    def _on_write_refused(self, entry: TrackedTask, status: TaskState, fate: WriteRefused) -> None:
        fields = log_fields(entry.task, error=fate.message)
        if fate.status == 404 or entry.status_truncated:
            log.error("status.refused", **fields)
            self._on_refused(entry)
            return
        if status is not entry.status:
            if entry.stage is not TaskStage.FINISHED:
                self.set_status(entry, entry.status)
            return  # the newer status has a write of its own
        log.warning("status.truncated", **fields)
        entry.status_truncated = True
        entry.status = replace(
            status,
            result=None,
            # The last attempt stays: the next one's number follows from it.
            history=tuple(replace(one, worker="", message="") for one in status.history[-1:]),
            worker="",
            message="recorded in short, because the API server refused the full status: "
            f"{fate.message}"[:STATUS_MESSAGE_LENGTH],
        )
        self._write(entry, urgent=status.phase.terminal)


def ack(delivery: Delivery) -> None:
    """Acknowledge a delivery."""
    delivery.channel.ack(delivery.delivery_tag)
