"""Executes what the machine decides about each Task, and hands it what comes of it as events.

The runner decides nothing. Events that come while one is handled are handled after it, in order:
all effects of a step are done before the next step begins. What raises is logged, and nothing else
waits for it: neither the other effects of the step nor other Tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any, Protocol, cast

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import WorkerCommand, command_message
from taskqueue.contract.heartbeat import RunningAttempt
from taskqueue.contract.work import WorkMessage
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.metrics import (
    OUTCOMES_DROPPED,
    STATUS_WRITES,
    STATUSES_REFUSED,
    TASKS_FINISHED,
)
from taskqueue.controller.tasks import effects, events
from taskqueue.controller.tasks.batch_items import BatchItems, NoBatches, is_item
from taskqueue.controller.tasks.dependencies import Dependencies
from taskqueue.controller.tasks.dependency_graph import INDEPENDENT
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.machine import step
from taskqueue.controller.tasks.payloads import Payloads
from taskqueue.controller.tasks.task_timers import TaskTimers
from taskqueue.controller.tasks.tracked_task import TaskEnvironment, TrackedTask, log_fields
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteRefused, WriteResult
from taskqueue.kubernetes.task_codec import is_behind, shortened, status_patch, status_path
from taskqueue.logs import EventLog
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import StatusDetail
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: How the API server would answer to what cannot even be sent to it.
_UNPROCESSABLE = 422


class MessageSource(Protocol):
    """The broker a message came from: a `BrokerLink`, whose package stands above this one."""

    @property
    def publisher(self) -> Publisher | None:
        """To publish there; None while it cannot be."""

    @property
    def broker(self) -> object:
        """Which broker and virtual host that is: the same object for the same."""

    def dead_letter_delivery(self, delivery: Delivery, reason: str) -> None:
        """Move a message to the dead exchange, and acknowledge it when it is there."""


class TaskRunner:
    """Holds the states of all unfinished Tasks, and runs the machine on them.

    Args:
        dispatchers: of the queues; that of any queue is there when it is asked for.
        dependencies: what is known of the Tasks they depend on.
        payloads: has those at hand that are published next.
        updater: writes statuses.
        ends: publishes the events about ends.
        tokens: sign what is published.
        leads: whether this process certainly still leads.
        clock: wall time in seconds.
        random: for the jitter of back-offs.
        on_end: called when a final status is in the API server and the Task is tracked no more.
        on_forgotten: called with a Task that is tracked no more for another reason.
        on_announced: called when nothing more waits for the object of a finished Task.
        on_refused: called with a Task whose status the API server refuses, and with its words.
        read_object: reads an object and sends `events.ObjectRead`.
    """

    def __init__(
        self,
        *,
        dispatchers: Mapping[QueueKey, Dispatcher],
        dependencies: Dependencies,
        payloads: Payloads,
        updater: StatusUpdater,
        ends: TaskEnds,
        tokens: TokenKeys,
        leads: Callable[[], bool],
        clock: Clock,
        random: Random,
        on_end: Callable[[TrackedTask], None],
        on_forgotten: Callable[[TrackedTask, effects.Forget], None],
        on_announced: Callable[[TrackedTask], None],
        on_refused: Callable[[TrackedTask, str], None],
        read_object: Callable[[TrackedTask, effects.ReadObject], None],
    ) -> None:
        #: The unfinished Tasks by uid. Only the runner changes it.
        self.tasks: dict[str, TrackedTask] = {}
        self.items: BatchItems = NoBatches()
        self._dispatchers = dispatchers
        self._dependencies = dependencies
        self._payloads = payloads
        self._updater = updater
        self._ends = ends
        self._tokens = tokens
        self._leads = leads
        self._clock = clock
        self._random = random
        self._on_end = on_end
        self._on_forgotten = on_forgotten
        self._on_announced = on_announced
        self._on_refused = on_refused
        self._read_object = read_object
        self._timers = {timer: TaskTimers(partial(self._on_timer, timer)) for timer in events.Timer}
        self._events: deque[tuple[str, events.Event]] = deque()
        self._is_running = False

    def find(self, uid: str) -> TrackedTask | None:
        """Return a tracked Task; an item of a TaskBatch that has not ended is tracked from now."""
        if uid not in self.tasks and is_item(uid):
            self.items.adopt(uid)
        return self.tasks.get(uid)

    def track(self, tracked: TrackedTask, event: events.Event) -> None:
        """Take a Task that the informer shows for the first time, and react to that event."""
        self.tasks[tracked.uid] = tracked
        self._dispatchers[tracked.queue_key].uids[tracked.uid] = None
        self.send(tracked.uid, event)

    def send(self, uid: str, event: events.Event) -> None:
        """Have the machine react to an event; of a Task that is not tracked it means nothing."""
        self._events.append((uid, event))
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._events:
                uid, event = self._events.popleft()
                tracked = self.tasks.get(uid)
                if tracked is not None:
                    self._step(tracked, event)
        finally:
            self._is_running = False

    def token(self, tracked: TrackedTask) -> str:
        """Return the token of a Task's present attempt."""
        status = tracked.status
        return self._tokens.sign(tracked.uid, status.current_attempt, status.epoch)

    def is_present(self, tracked: TrackedTask, attempt: RunningAttempt) -> bool:
        """Return whether a worker's attempt, if it is genuine, is a Task's present one."""
        status = tracked.status
        if attempt.attempt is None or attempt.epoch is None:
            return attempt.token == self.token(tracked)
        # Not by the token: it may be signed with another key than the current one.
        return (attempt.attempt, attempt.epoch) == (status.current_attempt, status.epoch)

    def stop_stray(self, uid: str, token: str, source: MessageSource) -> None:
        """Command a worker to stop an attempt nobody waits for; a lost command costs a run."""
        if source.publisher is not None:
            message = command_message(WorkerCommand(CommandKind.CANCEL, token=token, uid=uid))
            source.publisher.publish(
                message.exchange, message.key, message.body, message.properties(), _ignore
            )

    def write_scheduled(self) -> None:
        """Write what waits to be worth a write: this process ends, and knows it alone."""
        for uid in self._timers[events.Timer.WRITE].pop_all():
            self.send(uid, events.TimerFired(events.Timer.WRITE))

    def _step(self, tracked: TrackedTask, event: events.Event) -> None:
        try:
            after, todo = step(tracked, event, self._environment(tracked))
        except Exception as error:
            fields = log_fields(tracked.task, reaction=type(event).__name__)
            return log.error("task.step_failed", exc_info=error, **fields)
        if after is not tracked:
            self.tasks[tracked.uid] = after
        self._execute(after, todo)

    def _execute(self, tracked: TrackedTask, todo: tuple[effects.Effect, ...]) -> None:
        for effect in todo:
            try:
                _EXECUTORS[type(effect)](self, tracked, effect)
            except Exception as error:
                fields = log_fields(tracked.task, effect=type(effect).__name__)
                log.error("task.effect_failed", exc_info=error, **fields)

    def _environment(self, tracked: TrackedTask) -> TaskEnvironment:
        """Return what is known around a Task; what its spec does not ask for is not looked up."""
        task, dispatcher = tracked.task, self._dispatchers[tracked.queue_key]
        spec = task.spec
        return TaskEnvironment(
            policy=dispatcher.policy(tracked) if dispatcher.config is not None else None,
            dependencies=self._dependencies.state_of(task) if spec.depends_on else INDEPENDENT,
            payload_error=self._payloads.error(task.uid),
            payload_digest=self._payloads.digest(task) if spec.payload_from else "",
            now=self._clock(),
            monotonic=asyncio.get_running_loop().time(),
            random=self._random.random(),
            can_publish=dispatcher.can_publish and self._payloads.is_at_hand(task),
            leads=not tracked.status.concurrency_key or self._leads(),
            missing_handler=dispatcher.missing.handlers.get(spec.handler),
            is_archived=dispatcher.has_sinks,
        )

    # Dispatching.

    def _enqueue(self, tracked: TrackedTask, _: effects.Enqueue) -> None:
        self._dispatchers[tracked.queue_key].enqueue(tracked.uid)

    def _hold(self, tracked: TrackedTask, _: effects.Hold) -> None:
        self._dispatchers[tracked.queue_key].hold(tracked.uid)

    def _withdraw(self, tracked: TrackedTask, effect: effects.Withdraw) -> None:
        self._dispatchers[tracked.queue_key].withdraw(tracked.uid, finished=effect.finished)
        self._payloads.discard(tracked.task)

    def _adopt_key(self, tracked: TrackedTask, effect: effects.AdoptKey) -> None:
        dispatcher = self._dispatchers[tracked.queue_key]
        dispatcher.keys.assign(effect.key, tracked.uid)
        dispatcher.attempts.add(tracked.uid)
        if dispatcher.keys.contend_for_keys:
            dispatcher.keys.contend(tracked.uid)

    def _release_key(self, tracked: TrackedTask, effect: effects.ReleaseKey) -> None:
        self._dispatchers[tracked.queue_key].keys.release(effect.key, tracked.uid)

    def _hold_key(self, tracked: TrackedTask, effect: effects.HoldKey) -> None:
        token = self._tokens.sign(tracked.uid, effect.attempt, effect.epoch)
        self._dispatchers[tracked.queue_key].keys.hold(effect.key, token, effect.seconds)

    def _publish(self, tracked: TrackedTask, effect: effects.Publish) -> None:
        task, dispatcher = tracked.task, self._dispatchers[tracked.queue_key]
        policy = dispatcher.policy(tracked)
        dispatcher.publish(
            WorkMessage(
                namespace=task.namespace,
                queue=task.spec.queue,
                task=task.name,
                uid=task.uid,
                handler=task.spec.handler,
                attempt=effect.attempt,
                max_attempts=policy.max_attempts,
                epoch=effect.epoch,
                token=self._tokens.sign(task.uid, effect.attempt, effect.epoch),
                max_deliveries=max(policy.max_deliveries - effect.deliveries, 1),
                timeout_seconds=policy.attempt_timeout_seconds,
                body=self._payloads.body(task),
                fence=effect.fence,
                checkpoint=tracked.status.checkpoint,
                checkpointed=tracked.status.checkpoint is not None,
                scheduled_time=task.scheduled_time,
                index=task.index,
            )
        )
        self._payloads.mark_published(task.uid)

    def _mark_confirmed(self, tracked: TrackedTask, _: effects.MarkConfirmed) -> None:
        self._dispatchers[tracked.queue_key].attempts.mark_confirmed(tracked.uid)

    def _mark_delivered(self, tracked: TrackedTask, effect: effects.MarkDelivered) -> None:
        self._dispatchers[tracked.queue_key].attempts.mark_delivered(tracked.uid, effect.seconds)

    def _await_worker(self, tracked: TrackedTask, effect: effects.AwaitWorker) -> None:
        self._dispatchers[tracked.queue_key].attempts.await_worker(tracked.uid, effect.worker)

    def _note_missing(self, tracked: TrackedTask, effect: effects.NoteHandlerMissing) -> None:
        missing = self._dispatchers[tracked.queue_key].missing
        missing.add(tracked.task.spec.handler, tracked.uid, effect.missing)

    def _note_found(self, tracked: TrackedTask, _: effects.NoteHandlerFound) -> None:
        handler = tracked.task.spec.handler
        self._dispatchers[tracked.queue_key].on_handlers_registered((handler,))

    def _pause_dispatch(self, tracked: TrackedTask, _: effects.PauseDispatch) -> None:
        self._dispatchers[tracked.queue_key].pause()

    def _report_missing_queue(self, tracked: TrackedTask, _: effects.ReportMissingQueue) -> None:
        self._dispatchers[tracked.queue_key].on_missing()

    def _send_command(self, tracked: TrackedTask, effect: effects.SendCommand) -> None:
        token = self._tokens.sign(tracked.uid, effect.attempt, effect.epoch)
        self._dispatchers[tracked.queue_key].send_command(effect.kind, token, tracked.uid)

    def _stop_stray(self, tracked: TrackedTask, effect: effects.StopStray) -> None:
        self.stop_stray(tracked.uid, effect.token, effect.source)

    # What is recorded and acknowledged.

    def _write_status(self, tracked: TrackedTask, effect: effects.WriteStatus) -> None:
        if tracked.task.index is not None:
            self.items.write(tracked, effect)
            return
        uid, status, receipts, detail = tracked.uid, effect.status, effect.receipts, effect.detail

        def on_result(result: WriteResult) -> None:
            if isinstance(result, WriteRefused):
                code, why = result.status, result.message
                self.send(uid, events.StatusRejected(status, code, why, is_behind(why), detail))
                return
            STATUS_WRITES.inc()
            seen = (result.generation, result.version, result.metadata)
            self.send(uid, events.StatusWritten(status, receipts, *seen))

        try:
            patch = status_patch(
                tracked.task, status, now=self._clock(), detail=detail, why=effect.why
            )
        except (TypeError, ValueError, OverflowError) as error:  # nested too deeply, for one
            reason = f"it cannot be written as JSON: {error}"
            on_result(WriteRefused(_UNPROCESSABLE, reason))
            return
        self._updater.put(status_path(tracked.task), patch, on_result, urgent=effect.urgent)

    def _report_refusal(self, tracked: TrackedTask, effect: effects.ReportRefusal) -> None:
        STATUSES_REFUSED.inc()
        self._on_refused(tracked, effect.why)

    def _acknowledge(self, _: TrackedTask, effect: effects.Acknowledge) -> None:
        for receipt in effect.receipts:
            acknowledge(cast(Delivery, receipt))
            if effect.dropped:
                OUTCOMES_DROPPED.labels(effect.dropped).inc()

    def _count_dropped(self, _: TrackedTask, effect: effects.CountDropped) -> None:
        OUTCOMES_DROPPED.labels(effect.reason).inc()

    def _publish_completion(self, tracked: TrackedTask, effect: effects.PublishCompletion) -> None:
        detail, why = tracked.detail
        is_full = detail is StatusDetail.FULL
        on_record = tracked.status if is_full else shortened(tracked.status, why)
        dispatcher = self._dispatchers[tracked.queue_key]
        config, has_sinks = dispatcher.config, dispatcher.has_sinks

        def on_published() -> None:
            # Nothing else is known around a Task that is tracked no more, and nothing need be.
            around = TaskEnvironment(policy=None, is_archived=has_sinks)
            self._execute(*step(tracked, events.CompletionConfirmed(), around))

        if tracked.task.index is not None:  # its TaskBatch has an end that others hear of
            on_published()
            return
        self._ends.publish(
            tracked.task,
            effect.status or on_record,
            effect.metadata,
            None if config is None else config.archive,
            reported=effect.reported,
            publisher=lambda: self._publisher_of(tracked),
            on_published=on_published,
        )

    def _publisher_of(self, tracked: TrackedTask) -> Publisher | None:
        """Return what reaches the queue's broker, or the one its last report came from."""
        own = self._dispatchers[tracked.queue_key].publisher
        source: Any = tracked.source
        return source.publisher if own is None and source is not None else own

    def _record_end(self, tracked: TrackedTask, _: effects.RecordEnd) -> None:
        del self.tasks[tracked.uid]
        TASKS_FINISHED.labels(*tracked.queue_key, tracked.status.phase.value).inc()
        self._on_end(tracked)

    def _start_ttl(self, tracked: TrackedTask, _: effects.StartTtl) -> None:
        if tracked.task.index is None:
            self._on_announced(tracked)

    def _drop_task(self, tracked: TrackedTask, effect: effects.Forget) -> None:
        del self.tasks[tracked.uid]
        self._on_forgotten(tracked, effect)

    # Timers, reads, logs.

    def _set_timer(self, tracked: TrackedTask, effect: effects.SetTimer) -> None:
        if effect.seconds is None:
            self._timers[effect.timer].cancel(tracked.uid)
        else:
            self._timers[effect.timer].set(tracked.uid, effect.seconds)

    def _on_timer(self, timer: events.Timer, uid: str) -> None:
        self.send(uid, events.TimerFired(timer))

    def _cancel_timers(self, tracked: TrackedTask, _: effects.CancelTimers) -> None:
        for timers in self._timers.values():
            timers.cancel(tracked.uid)

    def _track_dependencies(self, tracked: TrackedTask, _: effects.TrackDependencies) -> None:
        self._dependencies.update(tracked.task)

    def _reconcile(self, tracked: TrackedTask, _: effects.Reconcile) -> None:
        self.send(tracked.uid, events.EnvironmentChanged())

    def _read(self, tracked: TrackedTask, effect: effects.ReadObject) -> None:
        self._read_object(tracked, effect)

    def _log(self, tracked: TrackedTask, effect: effects.Log) -> None:
        getattr(log, effect.level)(effect.event, **log_fields(tracked.task, **effect.fields))


def acknowledge(delivery: Delivery) -> None:
    """Acknowledge a message of the inbox."""
    delivery.channel.ack(delivery.delivery_tag)


def _ignore(verdict: Settled, text: str) -> None:
    """Take no notice of what became of a publish."""


_EXECUTORS: Mapping[type, Callable[[TaskRunner, TrackedTask, Any], None]] = {
    effects.Enqueue: TaskRunner._enqueue,
    effects.Hold: TaskRunner._hold,
    effects.Withdraw: TaskRunner._withdraw,
    effects.AdoptKey: TaskRunner._adopt_key,
    effects.ReleaseKey: TaskRunner._release_key,
    effects.HoldKey: TaskRunner._hold_key,
    effects.Publish: TaskRunner._publish,
    effects.MarkConfirmed: TaskRunner._mark_confirmed,
    effects.MarkDelivered: TaskRunner._mark_delivered,
    effects.AwaitWorker: TaskRunner._await_worker,
    effects.NoteHandlerMissing: TaskRunner._note_missing,
    effects.NoteHandlerFound: TaskRunner._note_found,
    effects.PauseDispatch: TaskRunner._pause_dispatch,
    effects.ReportMissingQueue: TaskRunner._report_missing_queue,
    effects.SendCommand: TaskRunner._send_command,
    effects.StopStray: TaskRunner._stop_stray,
    effects.WriteStatus: TaskRunner._write_status,
    effects.ReportRefusal: TaskRunner._report_refusal,
    effects.Acknowledge: TaskRunner._acknowledge,
    effects.CountDropped: TaskRunner._count_dropped,
    effects.PublishCompletion: TaskRunner._publish_completion,
    effects.RecordEnd: TaskRunner._record_end,
    effects.StartTtl: TaskRunner._start_ttl,
    effects.SetTimer: TaskRunner._set_timer,
    effects.CancelTimers: TaskRunner._cancel_timers,
    effects.TrackDependencies: TaskRunner._track_dependencies,
    effects.Reconcile: TaskRunner._reconcile,
    effects.ReadObject: TaskRunner._read,
    effects.Forget: TaskRunner._drop_task,
    effects.Log: TaskRunner._log,
}
