"""The building blocks of a Task's transitions: what `machine` does with a state, in which order.

Pure, as the machine is. A `Draft` holds the state in the making and the effects so far; it lives
for one step. Where a Task is (`TaskStage`) changes only as `STAGES` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from taskqueue.controller.tasks import effects, events, lifecycle
from taskqueue.controller.tasks.admission import AdmissionStep, decide, seconds_until
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure
from taskqueue.controller.tasks.missing_handlers import next_retry
from taskqueue.controller.tasks.tracked_task import (
    Dispatched,
    OwedCommand,
    Receipt,
    TaskEnvironment,
    TaskStage,
    TrackedTask,
    copy_of,
)
from taskqueue.limits import REPORT_GRACE_SECONDS, WORKER_LOST_SECONDS
from taskqueue.model.command import CommandKind
from taskqueue.model.task import Policy, TaskState

#: How long an unfinished status must hold before it is worth a write.
SETTLE_SECONDS = 2.0
#: How often a status is written at most because of checkpoints alone.
CHECKPOINT_SECONDS = 10.0
#: A worker reports `task.started` when an attempt has run this long.
STARTED_AFTER_SECONDS = 0.5

#: Every stage and those that may follow it.
STAGES: Mapping[TaskStage, frozenset[TaskStage]] = {
    TaskStage.NEW: frozenset(
        {TaskStage.HELD, TaskStage.WAITING, TaskStage.PUBLISHED, TaskStage.FINISHED}
    ),
    TaskStage.HELD: frozenset({TaskStage.WAITING, TaskStage.FINISHED}),
    TaskStage.WAITING: frozenset(
        {TaskStage.HELD, TaskStage.CLAIMING, TaskStage.PUBLISHED, TaskStage.FINISHED}
    ),
    TaskStage.CLAIMING: frozenset(
        {TaskStage.HELD, TaskStage.WAITING, TaskStage.PUBLISHED, TaskStage.FINISHED}
    ),
    TaskStage.PUBLISHED: frozenset({TaskStage.HELD, TaskStage.WAITING, TaskStage.FINISHED}),
    TaskStage.FINISHED: frozenset(),
}

#: Where a Task is on its way to a worker, or with one.
_GOING = (TaskStage.WAITING, TaskStage.CLAIMING, TaskStage.PUBLISHED)

#: Reports that do not say whether the worker knows the handler.
_SILENT_ABOUT_HANDLERS = (events.AttemptReleased, events.AttemptStopped)

#: Where a Task may have its concurrency key on record, though nothing of it is published.
_UNPUBLISHED = (TaskStage.WAITING, TaskStage.CLAIMING)


class Draft:
    """One transition being worked out; it never leaves its step.

    The state is copied at the first change, and the copy, which nobody else has, is changed in
    place: a copy for each change is what a step would spend most of its time on. So a state read
    before a change may show it.
    """

    __slots__ = ("_is_copied", "effects", "environment", "tracked")

    def __init__(self, tracked: TrackedTask, environment: TaskEnvironment) -> None:
        self.tracked = tracked
        self._is_copied = False
        self.environment = environment
        self.effects: list[effects.Effect] = []

    @property
    def policy(self) -> Policy:
        """What holds for the Task now; the defaults while its TaskQueue is missing."""
        if self.environment.policy is not None:
            return self.environment.policy
        return self.tracked.task.spec.overrides.over(Policy())

    def reconcile(self) -> None:
        """Do what is due by what is true now; see `admission.decide`."""
        tracked = self.tracked
        if tracked.stage is TaskStage.FINISHED:
            return
        if tracked.task.deleting:
            self.drop_task(None)  # whoever keeps the object for a while keeps no work alive
            return
        decision = decide(
            tracked.task,
            tracked.status,
            self.environment,
            dispatched=tracked.dispatched,
            hold_until=tracked.hold_until,
            anchors=tracked.anchors,
        )
        due, start = decision.status.next_attempt_time, tracked.task.spec.start_after
        self.anchor(decision.deadline, decision.reconsider_at, due, start)
        self.remind(decision.reconsider_at)
        if decision.step is AdmissionStep.END:
            self.end(decision.status)
        elif decision.status.epoch > tracked.status.epoch:
            self.recall(decision.status)
        elif decision.step is AdmissionStep.HOLD:
            status = decision.status
            unknown = tracked.dispatched is Dispatched.NO or not tracked.written.concurrency_key
            if tracked.stage in _UNPUBLISHED and unknown:
                status = lifecycle.unclaimed(status)  # nobody can have it by this claim
            self.change(status)
            self.hold()
        else:
            if tracked.hold_until:
                self.update(hold_until=0.0)  # or a clock that is set back would hold it again
            if decision.status is not tracked.status:
                self.change(decision.status)
            if tracked.stage not in _GOING:
                self.enqueue()

    def anchor(self, *times: float | None) -> None:
        """Let these times come by the monotonic clock from now on, and no others."""
        before, environment = self.tracked.anchors, self.environment
        wanted = [at for at in dict.fromkeys(times) if at is not None]
        if wanted != [at for at, _ in before]:
            now = environment.monotonic
            anchors = ((at, now + seconds_until(at, environment, before)) for at in wanted)
            self.update(anchors=tuple(anchors))

    def remind(self, at: float | None) -> None:
        """Be woken at a time, if time alone may change what is due."""
        if at != self.tracked.reconcile_at:
            self.update(reconcile_at=at)
            anchors = self.tracked.anchors
            seconds = None if at is None else seconds_until(at, self.environment, anchors)
            self.do(effects.SetTimer(events.Timer.RECONCILE, seconds))

    def start(self, attempt: int, worker: str, *, ago: float) -> None:
        """Take note that an attempt runs, and has for ``ago`` seconds."""
        begun = self.environment.now - ago
        self.do(effects.MarkDelivered(ago))
        status = self.tracked.status
        if attempt >= status.current_attempt:
            self.change(
                lifecycle.started(status, attempt=attempt, now=begun, worker=worker),
                settle_seconds=SETTLE_SECONDS - STARTED_AFTER_SECONDS,
            )

    def keep_alive(self) -> None:
        """Take note that a worker runs the present attempt now."""
        if self.tracked.stage is TaskStage.PUBLISHED:
            self.update(lost_at=self.environment.monotonic + WORKER_LOST_SECONDS)

    def count_on(self, event: events.AttemptReport) -> None:
        """Take note of what a report that counts says besides: its broker, a known handler."""
        if event.about.source is not self.tracked.source:
            self.update(source=event.about.source)
        if isinstance(event, events.HandlerUnknown):
            return
        if self.tracked.is_handler_missing:
            self.update(is_handler_missing=False)
        if self.environment.missing_handler and not isinstance(event, _SILENT_ABOUT_HANDLERS):
            self.do(effects.NoteHandlerFound())

    def wait_for_handler(self) -> None:
        """Try the Task again when all of its handler are."""
        environment = self.environment
        missing = next_retry(
            environment.missing_handler, now=environment.now, random=environment.random
        )
        self.update(hold_until=missing.retry_at, is_handler_missing=True)
        self.do(effects.NoteHandlerMissing(missing))

    def acknowledge_unfinished(self, receipt: Receipt) -> None:
        """Acknowledge what changes nothing but, perhaps, who holds a concurrency key.

        Then it must come again if this process ends before the key is given back on record.
        """
        if self.tracked.key:
            self.update(receipts=(*self.tracked.receipts, receipt))
        else:
            self.do(effects.Acknowledge((receipt,)))

    def drop_checkpoint_receipt(self) -> None:
        """Acknowledge the last checkpoint: a later one, or the end of the Task, replaces it."""
        receipt = self.tracked.checkpoint_receipt
        if receipt is not None:
            left = tuple(one for one in self.tracked.receipts if one is not receipt)
            self.update(receipts=left, checkpoint_receipt=None)
            self.do(effects.Acknowledge((receipt,)))

    def change(self, status: TaskState, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        """Give the Task another unfinished status, to be written if it lasts."""
        tracked = self.tracked
        if tracked.stray_copy_possible and status.epoch > tracked.status.epoch:
            self.update(stray_copy_possible=False)
        at = self.environment.monotonic + settle_seconds
        due = tracked.write_at is None or at < tracked.write_at
        if due and status != tracked.written:
            self.update(status=status, write_at=at)
            self.do(effects.SetTimer(events.Timer.WRITE, settle_seconds))
        elif status is not tracked.status:
            self.update(status=status)

    def fail(self, end: AttemptEnd, failure: AttemptFailure) -> None:
        """The attempt has failed: retry it, or end the Task."""
        self.update(deliveries=0)
        random = self.environment.random
        status = lifecycle.failed(
            self.tracked.status, end, failure, policy=self.policy, random=random
        )
        if status.phase.terminal:
            self.finish(status)
        else:
            self.go_on(status)

    def go_on(self, status: TaskState) -> None:
        """The attempt is over, the Task is not."""
        self.change(status)
        self.hold()
        self.reconcile()

    def end(self, status: TaskState) -> None:
        """End the Task without a worker's word, and stop what may still run."""
        if self.tracked.stage is not TaskStage.FINISHED:
            self.stop_worker()
            self.finish(status)

    def finish(self, status: TaskState) -> None:
        """Give the Task its final status, to be written at once."""
        self.cancel_timers()
        self.update(status=status)
        self.drop_checkpoint_receipt()
        self.leave_dispatch()
        if self.tracked.key:
            self.release_key()
        self.do(effects.Withdraw(finished=True))
        self.move(TaskStage.FINISHED)
        self.write(urgent=True)

    def drop_task(self, found: TaskState | None, *, why: str = "") -> None:
        """Track a Task no more that is (being) deleted, or finished by somebody else's hand.

        Args:
            found: its final status.
            why: what the log says instead; the Task is neither deleted nor finished then.
        """
        event = why or ("task.deleted" if found is None else "task.finished_elsewhere")
        self.do(effects.Log("info", event, {"stage": self.tracked.stage.name}))
        self.stop_worker()
        self.cancel_timers()
        self.leave_dispatch()
        if self.tracked.key:
            self.release_key()
        self.do(effects.Withdraw(finished=False))
        self.send_owed(written=None)
        if found is None and not why and self.environment.is_archived:
            # Not as reported, even if an outcome waits: it would come again, and say nothing then.
            end = lifecycle.deleted(self.tracked.status, now=self.environment.now)
            self.do(effects.PublishCompletion(False, self.tracked.metadata, end))
        else:
            if self.tracked.receipts:
                self.do(effects.Acknowledge(self.tracked.receipts))
            self.update(receipts=())
        self.move(TaskStage.FINISHED)
        self.do(effects.Forget(found))

    def refuse(self, message: str) -> None:
        """End the Task: it can never run as it is."""
        status, now = self.tracked.status, self.environment.now
        self.end(lifecycle.refused(status, now=now, reason="Invalid", message=message))

    def recall(self, status: TaskState) -> None:
        """Recall a dispatched attempt: the raised epoch is written first, then commanded."""
        self.owe(CommandKind.RELEASE)
        self.hold_key()
        self.update(status=status, stray_copy_possible=False)
        self.hold()
        self.write(urgent=True)

    def take_over(self, found: TaskState) -> None:
        """Go on from the numbers that another writer has raised, and write what is true.

        A raised epoch has made the token of the present attempt stale: it is recalled.
        """
        tracked = self.tracked
        status = lifecycle.renumbered(tracked.status, found)
        if tracked.stage is TaskStage.FINISHED:
            self.update(status=status)
        elif status.epoch == tracked.status.epoch:
            self.update(status=status)
            self.reconcile()
        else:
            if tracked.dispatched is not Dispatched.NO:
                self.owe(CommandKind.RELEASE)
                self.hold_key()
            self.go_on(status)
        self.write(urgent=True)

    # Dispatching.

    def enqueue(self) -> None:
        """Let the Task wait for its turn to be published."""
        self.leave_dispatch()
        self.move(TaskStage.WAITING)
        self.do(effects.Enqueue())

    def hold(self) -> None:
        """Keep the Task from being dispatched."""
        self.leave_dispatch()
        self.move(TaskStage.HELD)
        self.do(effects.Hold())

    def leave_dispatch(self) -> None:
        """Leave the present place in dispatching; a key that is not on record goes too."""
        tracked = self.tracked
        if tracked.maybe_published:
            self.update(maybe_published=False)
        if tracked.returned:
            self.update(returned=0)
            self.do(effects.SetTimer(events.Timer.LOST, None))
        if tracked.key and tracked.status.concurrency_key != tracked.key:
            self.release_key()

    def release_key(self) -> None:
        """Give the concurrency key up, held or waited for."""
        self.do(effects.ReleaseKey(self.tracked.key))
        self.update(key="")

    def publish_claimed(self) -> None:
        """Publish, if nobody else can have led before the claim was recorded."""
        if self.environment.leads:
            self.publish()
        else:
            # Whoever leads now has read the claim, and publishes; or this process still does,
            # and only its renewal is slow.
            self.do(effects.PauseDispatch())
            self.enqueue()

    def publish(self) -> None:
        """Publish the present attempt."""
        status, digest = self.tracked.status, self.environment.payload_digest
        if digest:
            status = _supplied(status, digest, now=self.environment.now)
        if status.payload_changed_time != self.tracked.status.payload_changed_time:
            fields = {"attempt": status.current_attempt}
            self.do(effects.Log("warning", "payload.changed", fields))
        limit, elsewhere, lost_at = self.policy.attempt_timeout_seconds, False, None
        if self.tracked.stray_copy_possible:  # a worker may run the first copy
            limit = max(limit, status.time_limit)
            elsewhere, lost_at = self.tracked.published_elsewhere, self.tracked.lost_at
        self.update(status=replace(status, time_limit=limit), lost_at=lost_at)
        self.update(maybe_published=False, stray_copy_possible=False, published_elsewhere=elsewhere)
        self.move(TaskStage.PUBLISHED)
        fence = self.tracked.fence if status.concurrency_key else None
        self.do(
            effects.Publish(status.current_attempt, status.epoch, fence, self.tracked.deliveries)
        )

    def hold_key(self) -> None:
        """Keep the key of a published attempt that is being stopped until its worker answers.

        At the latest until the attempt would have timed out: then nothing of it can run any more.
        """
        tracked = self.tracked
        if tracked.key:
            status = tracked.status
            seconds = tracked.attempt_seconds(self.policy)
            self.do(
                effects.HoldKey(
                    tracked.key,
                    status.current_attempt,
                    status.epoch,
                    seconds + REPORT_GRACE_SECONDS,
                )
            )

    # Commands, writes, timers.

    def stop_worker(self) -> None:
        """Command the worker that may have the present attempt to stop it."""
        if self.tracked.dispatched is not Dispatched.NO:
            status = self.tracked.status
            self.hold_key()
            self.do(effects.SendCommand(CommandKind.CANCEL, status.current_attempt, status.epoch))

    def owe(self, kind: CommandKind) -> None:
        """Command the present attempt as soon as a higher epoch is in the API server."""
        status = self.tracked.status
        owed = OwedCommand(status.epoch + 1, kind, status.current_attempt, status.epoch)
        self.update(owed=(*self.tracked.owed, owed))

    def send_owed(self, written: TaskState | None) -> None:
        """Send what waited for a write; all of it when nothing will be written any more."""
        owed = self.tracked.owed
        if not owed:
            return
        everything = written is None or written.phase.terminal
        epoch = 0 if written is None else written.epoch
        due = tuple(one for one in owed if everything or one.after_epoch <= epoch)
        self.update(owed=tuple(one for one in owed if one not in due))
        for one in due:
            self.do(effects.SendCommand(one.kind, one.attempt, one.epoch))

    def write(self, *, urgent: bool) -> None:
        """Write the present status, with the outcomes it contains."""
        tracked = self.tracked
        self.do(effects.WriteStatus(tracked.status, tracked.receipts, urgent, *tracked.detail))

    def cancel_timers(self) -> None:
        """Be woken by no timer any more."""
        self.update(reconcile_at=None, write_at=None)
        self.do(effects.CancelTimers())

    def move(self, stage: TaskStage) -> None:
        """Go to another stage, as `STAGES` allows."""
        present = self.tracked.stage
        if stage is not present:
            if stage not in STAGES[present]:
                raise AssertionError(f"{self.tracked.task.path} goes from {present} to {stage}")
            self.update(stage=stage)

    def update(self, **changes: Any) -> None:
        """Change the state."""
        if not self._is_copied:
            self.tracked = copy_of(self.tracked)
            self._is_copied = True
        for name, value in changes.items():
            object.__setattr__(self.tracked, name, value)

    def do(self, *effects: effects.Effect) -> None:
        """Have effects executed, after those before."""
        self.effects += effects


def _supplied(status: TaskState, digest: str, *, now: float) -> TaskState:
    """Return the status of a Task whose merged payload has this digest, and is published."""
    if digest == status.payload_digest:
        return status
    changed = now if status.payload_digest else None
    return replace(
        status,
        payload_digest=status.payload_digest or digest,
        payload_changed_time=status.payload_changed_time or changed,
    )
