"""The life of one Task in the operator: ``step(state, event, environment) -> (state, effects)``.

Pure: no clock, no chance, no I/O of its own; what to do is data (`effects`), and the runner does
it. What must hold whatever comes:

* A final status is written at once. Any other is written when it is two seconds old and still
  true, so that a short Task costs one write in all.
* An outcome is acknowledged only after a write that contains it has succeeded and, if it is the
  end, after the event about it is confirmed.
* Where there is an archive or a webhook, a Task has an end for it even if its object is deleted
  before, and its time to live begins when that is with the broker.
* A recall is written, with its raised epoch, before a command about it is sent: a leader that did
  not know of the epoch would publish the same token again, which no worker runs any more.
* A Task with a concurrency key is published only after a write says that it holds the key, and by
  a process that led when the write was done. It is never published beside itself.
* A checkpoint is acknowledged when a write that contains it has succeeded, or a later checkpoint or
  the end of the Task has replaced it. What is published carries the last one.
* An attempt is not published beside a worker that runs it: `lost_attempts` has when that is lost.
* A status the API server refuses for good is written in short; `refusals` has what follows if that
  is refused too, or another writer has raised attempts or epoch.

Where a Task is changes only as `transition.STAGES` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from taskqueue.controller.tasks import effects, events, lifecycle, lost_attempts, refusals
from taskqueue.controller.tasks.admission import QUEUE_FULL
from taskqueue.controller.tasks.lifecycle import Verdict
from taskqueue.controller.tasks.missing_handlers import UNKNOWN_HANDLER
from taskqueue.controller.tasks.tracked_task import TaskEnvironment, TaskStage, TrackedTask
from taskqueue.controller.tasks.transition import (
    CHECKPOINT_SECONDS,
    STARTED_AFTER_SECONDS,
    Draft,
)
from taskqueue.limits import SNOOZES
from taskqueue.model.command import CommandKind
from taskqueue.model.flow import OnConflict

#: How long until an attempt that a worker stopped by itself is published again.
STOPPED_SECONDS = 1.0


class Transition(NamedTuple):
    """The next state of a Task, and what is to be done, in order."""

    tracked: TrackedTask
    effects: tuple[effects.Effect, ...]


def step(tracked: TrackedTask, event: events.Event, environment: TaskEnvironment) -> Transition:
    """Return what follows from an event.

    Args:
        tracked: the state of the Task.
        event: what happened.
        environment: what is known around the Task at this moment.
    """
    draft = Draft(tracked, environment)
    if isinstance(event, events.AttemptReport) and not is_awaited(
        tracked, event.about.attempt, event.about.epoch
    ):
        _on_stale_report(draft, event)
    else:
        _REACTIONS[type(event)](draft, event)
    return Transition(draft.tracked, tuple(draft.effects))


def is_awaited(tracked: TrackedTask, attempt: int, epoch: int) -> bool:
    """Return whether the Task waits for the outcome of this attempt."""
    verdict = lifecycle.judge(tracked.status, attempt=attempt, epoch=epoch)
    return verdict is Verdict.COUNTS and tracked.stage is not TaskStage.FINISHED


def _on_seen(draft: Draft, event: events.Seen) -> None:
    key = draft.tracked.status.concurrency_key
    if key:
        # Published by a former leader, as far as anybody knows.
        draft.update(key=key, maybe_published=True)
        draft.move(TaskStage.PUBLISHED)
        draft.do(effects.AdoptKey(key), effects.MarkConfirmed())
    draft.do(effects.TrackDependencies())
    if draft.tracked.task.spec.depends_on:
        draft.do(effects.Reconcile())  # by what that effect finds out
    else:
        draft.reconcile()


def _on_spec_changed(draft: Draft, event: events.SpecChanged) -> None:
    before, spec = draft.tracked.task.spec, event.task.spec
    draft.update(task=event.task)
    if (spec.depends_on, spec.whens) != (before.depends_on, before.whens):
        draft.do(effects.TrackDependencies())
    moved = (spec.priority, spec.concurrency_key) != (before.priority, before.concurrency_key)
    if draft.tracked.stage is TaskStage.WAITING and moved:
        draft.enqueue()
    draft.do(effects.Reconcile())


def _on_environment_changed(draft: Draft, event: events.EnvironmentChanged) -> None:
    draft.reconcile()


def _on_payload_refused(draft: Draft, event: events.PayloadRefused) -> None:
    draft.refuse(event.problem)


def _on_place_missing(draft: Draft, event: events.PlaceMissing) -> None:
    if draft.tracked.is_running:
        return  # a message of it that was taken for lost was not
    draft.change(
        lifecycle.blocked(
            draft.tracked.status,
            reason=QUEUE_FULL,
            message="as many Tasks wait for their turn as the TaskQueue's spec.flow.maxWaiting "
            "allows: this one follows when there is room",
        )
    )


def _on_conflict_lost(draft: Draft, event: events.ConflictLost) -> None:
    key, policy = draft.tracked.task.spec.concurrency_key, event.policy
    newer = "" if policy is OnConflict.REJECT else "is newer and "
    status = lifecycle.cancelled(
        draft.tracked.status,
        now=draft.environment.now,
        reason="Superseded" if newer else "Rejected",
        message=f"spec.concurrencyKey: Task {event.other} {newer}has the same key {key}, and "
        f"spec.concurrencyLimits.onConflict of the TaskQueue is {policy.value}",
    )
    draft.end(status)


def _on_turn_came(draft: Draft, event: events.TurnCame) -> None:
    if draft.tracked.status.reason == QUEUE_FULL:
        draft.change(lifecycle.unblocked(draft.tracked.status))
    key = draft.tracked.task.spec.concurrency_key
    if draft.tracked.status.concurrency_key:
        draft.publish_claimed()
    elif not key:
        draft.publish()
    elif event.key_granted:
        draft.update(key=key, status=lifecycle.claimed(draft.tracked.status, key=key))
        draft.move(TaskStage.CLAIMING)
        draft.write(urgent=True)
    else:
        draft.update(key=key)
        draft.change(
            lifecycle.blocked(
                draft.tracked.status,
                reason="ConcurrencyLimit",
                message=f"spec.concurrencyKey: as many Tasks of key {key} are dispatched as "
                "the TaskQueue's spec.concurrencyLimits.perKey allows",
            )
        )


def _on_publish_settled(draft: Draft, event: events.PublishSettled) -> None:
    present = (draft.tracked.status.current_attempt, draft.tracked.status.epoch)
    if draft.tracked.stage is not TaskStage.PUBLISHED or present != (event.attempt, event.epoch):
        return  # its outcome was faster than the broker's word about the publish
    if event.confirmation is events.Confirmation.CONFIRMED:
        draft.do(effects.MarkConfirmed())
        return
    verdict = event.confirmation.name.lower()
    fields = {"attempt": event.attempt, "verdict": verdict, "error": event.text}
    draft.do(effects.Log("warning", "dispatch.not_published", fields), effects.PauseDispatch())
    if draft.tracked.key and event.confirmation is events.Confirmation.UNKNOWN:
        draft.update(maybe_published=True)
        draft.do(effects.MarkConfirmed())
        return
    draft.enqueue()
    draft.update(stray_copy_possible=event.confirmation is events.Confirmation.UNKNOWN)
    if event.confirmation is events.Confirmation.RETURNED:
        draft.do(effects.ReportMissingQueue())


def _on_messages_lost(draft: Draft, event: events.MessagesLost) -> None:
    if draft.tracked.key:
        draft.update(maybe_published=True)  # a worker may still run it
    elif not draft.tracked.returned:  # else its message was not there
        draft.enqueue()


def _on_started(draft: Draft, event: events.AttemptStarted) -> None:
    draft.count_on(event)
    draft.keep_alive()
    draft.do(effects.Acknowledge((event.about.receipt,)))
    draft.start(event.about.attempt, event.worker, ago=STARTED_AFTER_SECONDS)


def _on_checkpoint_saved(draft: Draft, event: events.CheckpointSaved) -> None:
    """Keep what the handler saved; it is progress, so what was lost before counts no more."""
    draft.count_on(event)
    draft.keep_alive()
    draft.drop_checkpoint_receipt()
    receipt = event.about.receipt
    draft.update(
        receipts=(*draft.tracked.receipts, receipt), checkpoint_receipt=receipt, deliveries=0
    )
    draft.change(
        lifecycle.checkpointed(draft.tracked.status, event.checkpoint),
        settle_seconds=CHECKPOINT_SECONDS,
    )


def _on_stopped(draft: Draft, event: events.AttemptStopped) -> None:
    """Publish the attempt again, by another token: workers remember the command by the token.

    Not at once: the worker may be one that stops whatever it gets.
    """
    draft.count_on(event)
    draft.update(hold_until=draft.environment.now + STOPPED_SECONDS)
    draft.acknowledge_unfinished(event.about.receipt)
    draft.go_on(lifecycle.recalled(draft.tracked.status))


def _on_snoozed(draft: Draft, event: events.AttemptSnoozed) -> None:
    """Publish the attempt again later, uncounted, by another token: this report may come twice."""
    if draft.tracked.status.snoozes >= SNOOZES:
        _on_failed(draft, events.AttemptFailed(event.about, event.end, lifecycle.SNOOZED_TOO_OFTEN))
        return
    draft.count_on(event)
    draft.update(receipts=(*draft.tracked.receipts, event.about.receipt), deliveries=0)
    draft.go_on(lifecycle.snoozed(draft.tracked.status, event.end, seconds=event.seconds))


def _on_handler_unknown(draft: Draft, event: events.HandlerUnknown) -> None:
    """Try again later, uncounted: workers that know the handler may be on their way.

    With a concurrency key by another token, as in `_on_released`: this report may come twice.
    """
    draft.count_on(event)
    release = lifecycle.recalled if draft.tracked.key else lifecycle.released
    draft.wait_for_handler()
    draft.acknowledge_unfinished(event.about.receipt)
    draft.go_on(
        lifecycle.blocked(
            release(draft.tracked.status),
            reason=UNKNOWN_HANDLER,
            message=f"spec.handler: {event.message}: roll out workers that know it, and the "
            "Task continues, or create a Task with another handler",
        )
    )


def _on_handler_registered(draft: Draft, event: events.HandlerRegistered) -> None:
    if draft.tracked.is_handler_missing:
        draft.update(is_handler_missing=False, hold_until=0.0)
        draft.reconcile()


def _on_succeeded(draft: Draft, event: events.AttemptSucceeded) -> None:
    draft.count_on(event)
    status, stored = draft.tracked.status, event.result_ref
    draft.update(receipts=(*draft.tracked.receipts, event.about.receipt))
    draft.finish(lifecycle.succeeded(status, event.end, result=event.result, result_ref=stored))


def _on_failed(draft: Draft, event: events.AttemptFailed) -> None:
    draft.count_on(event)
    draft.update(receipts=(*draft.tracked.receipts, event.about.receipt))
    draft.fail(event.end, event.failure)


def _on_stale_report(draft: Draft, event: events.AttemptReport) -> None:
    """Drop a report about an attempt nobody waits for; a worker that begins one must stop."""
    receipt = event.about.receipt
    if isinstance(event, events.AttemptStarted):
        if not draft.tracked.owed:  # else the command follows when the raised epoch is on record
            draft.do(effects.StopStray(event.about.token, event.about.source))
        draft.do(effects.Acknowledge((receipt,), dropped="stale"))
    elif draft.tracked.receipts:
        # Perhaps the very outcome that awaits its write, delivered again by the broker.
        draft.update(receipts=(*draft.tracked.receipts, receipt))
        draft.do(effects.CountDropped("stale"))
    else:
        draft.do(effects.Acknowledge((receipt,), dropped="stale"))


def _on_heartbeat(draft: Draft, event: events.HeartbeatSeen) -> None:
    tracked = draft.tracked
    draft.keep_alive()
    # Its start may have been reported to a leader that did not live to write it.
    if not tracked.is_running and tracked.stage is TaskStage.PUBLISHED:
        draft.start(tracked.status.current_attempt, event.worker, ago=0.0)  # at least
    if event.progress is not None:
        draft.change(lifecycle.progressed(draft.tracked.status, event.progress))


def _on_unreported(draft: Draft, event: events.AttemptUnreported) -> None:
    tracked = draft.tracked
    if lost_attempts.may_run_on(draft, event.seconds):
        return
    draft.do(effects.Log("warning", "attempt.unreported", {"worker": tracked.status.worker}))
    if tracked.maybe_published and not tracked.is_running:
        # Perhaps nobody ever had it: that is not a failed attempt. No worker begins it now.
        draft.owe(CommandKind.RELEASE)
        draft.go_on(lifecycle.recalled(tracked.status))
        draft.write(urgent=True)
        return
    status = lost_attempts.unreported_status(draft, event)
    if status.phase.terminal:
        draft.end(status)
        return
    draft.owe(CommandKind.CANCEL)
    draft.hold_key()
    draft.update(deliveries=0)
    draft.go_on(status)
    draft.write(urgent=True)


def _on_status_written(draft: Draft, event: events.StatusWritten) -> None:
    draft.update(written=event.status)
    draft.send_owed(written=event.status)
    if event.status.phase.terminal:
        _on_end_written(draft, event)
        return
    draft.update(refusal=None)
    # A report that came again while its outcome was written is in what was written, too.
    whole = event.status == draft.tracked.status
    done = tuple(one for one in draft.tracked.receipts if whole or one in event.receipts)
    if done:
        left = tuple(one for one in draft.tracked.receipts if one not in done)
        draft.update(receipts=left)
        if not any(one is draft.tracked.checkpoint_receipt for one in left):
            draft.update(checkpoint_receipt=None)
        draft.do(effects.Acknowledge(done))
    if draft.tracked.stage is not TaskStage.FINISHED:
        draft.change(draft.tracked.status)  # it may have changed back while this was written
    key = draft.tracked.key
    if draft.tracked.stage is TaskStage.CLAIMING and event.status.concurrency_key == key:
        if event.status is not draft.tracked.status:
            draft.write(urgent=True)  # a later one may have replaced it, without the claim
            return
        draft.update(fence=event.version)
        if draft.environment.can_publish:
            draft.publish_claimed()
        else:
            draft.enqueue()


def _on_end_written(draft: Draft, event: events.StatusWritten) -> None:
    task = draft.tracked.task
    if event.generation > task.generation:
        # The spec was changed just before: a final status must name the last generation, or
        # `kubectl wait` does not believe it. What was refused in full is not tried in full again.
        draft.update(task=replace(task, generation=event.generation))
        draft.write(urgent=True)
        return
    reported = bool(draft.tracked.receipts)
    draft.cancel_timers()
    draft.do(effects.PublishCompletion(reported, event.metadata), effects.RecordEnd())
    if not reported and not draft.environment.is_archived:
        draft.do(effects.StartTtl())


def _on_completion_confirmed(draft: Draft, event: events.CompletionConfirmed) -> None:
    receipts = draft.tracked.receipts
    if receipts:
        draft.do(effects.Acknowledge(receipts))
        draft.update(receipts=())
    if (receipts or draft.environment.is_archived) and draft.tracked.written.phase.terminal:
        draft.do(effects.StartTtl())


def _on_timer(draft: Draft, event: events.TimerFired) -> None:
    if event.timer is events.Timer.RECONCILE:
        draft.update(reconcile_at=None)
        draft.reconcile()
        return
    if event.timer is events.Timer.READ:
        refusals.on_read_due(draft)
        return
    if event.timer is events.Timer.LOST:
        lost_attempts.on_lost_due(draft)
        return
    draft.update(write_at=None)
    tracked = draft.tracked
    if tracked.stage is TaskStage.FINISHED:
        return
    if tracked.status != tracked.written or tracked.receipts:
        draft.write(urgent=False)


def _on_left_informer(draft: Draft, event: events.LeftInformer) -> None:
    archived = draft.environment.is_archived
    draft.update(has_left_informer=True, metadata=event.metadata if archived else None)
    if draft.tracked.stage is not TaskStage.FINISHED:
        draft.do(effects.ReadObject(events.ReadPurpose.LEFT_INFORMER))


def _on_object_read(draft: Draft, event: events.ObjectRead) -> None:
    if event.found is None or event.found.phase.terminal:
        draft.drop_task(event.found)
    elif event.purpose is events.ReadPurpose.LEFT_INFORMER:
        draft.update(has_left_informer=False, metadata=None)
    else:
        refusals.on_still_there(draft, event)


_REACTIONS: Mapping[type, Callable[[Draft, Any], None]] = {
    events.Seen: _on_seen,
    events.SpecChanged: _on_spec_changed,
    events.FoundUnreadable: lambda draft, event: draft.refuse(event.message),
    events.EnvironmentChanged: _on_environment_changed,
    events.PayloadRefused: _on_payload_refused,
    events.TurnCame: _on_turn_came,
    events.PlaceMissing: _on_place_missing,
    events.ConflictLost: _on_conflict_lost,
    events.PublishSettled: _on_publish_settled,
    events.MessagesLost: _on_messages_lost,
    events.AttemptStarted: _on_started,
    events.AttemptReleased: lost_attempts.on_released,
    events.CheckpointSaved: _on_checkpoint_saved,
    events.AttemptStopped: _on_stopped,
    events.AttemptSnoozed: _on_snoozed,
    events.HandlerUnknown: _on_handler_unknown,
    events.HandlerRegistered: _on_handler_registered,
    events.AttemptSucceeded: _on_succeeded,
    events.AttemptFailed: _on_failed,
    events.HeartbeatSeen: _on_heartbeat,
    events.AttemptMissed: lost_attempts.on_missed,
    events.ReportsResumed: lost_attempts.on_reports_resumed,
    events.AttemptUnreported: _on_unreported,
    events.StatusWritten: _on_status_written,
    events.StatusRejected: refusals.on_status_rejected,
    events.CompletionConfirmed: _on_completion_confirmed,
    events.TimerFired: _on_timer,
    events.LeftInformer: _on_left_informer,
    events.ServedElsewhere: lambda draft, _: draft.drop_task(None, why="task.left_to_other"),
    events.ObjectRead: _on_object_read,
}
