"""What surrounds one Task, as plain values: API server, broker, workers and clock feed it events.

No asyncio, no AMQP, no fake of a part of the operator.
"""

from __future__ import annotations

from dataclasses import replace

from taskqueue.controller.tasks import events, lifecycle, machine
from taskqueue.controller.tasks.events import Confirmation, Timer
from taskqueue.controller.tasks.lost_attempts import MISSED_SECONDS
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.limits import REPORT_GRACE_SECONDS, SNOOZES, WORKER_LOST_SECONDS
from taskqueue.model.task import PENDING, Policy, ProgressState, Task, TaskSpec, TaskState
from tests.unit.controller.tasks.task_record import (
    ENDS,
    INSTANT,
    MAX_DELIVERIES,
    RECORDED,
    SNOOZE_SECONDS,
    START,
    TIMEOUT,
    Copy,
    Report,
    TaskRecord,
)


class TaskModel(TaskRecord):
    """One Task and what happens around it; see `TaskRecord` for what it checks."""

    @classmethod
    def of(cls, spec: TaskSpec, status: TaskState = PENDING, **fields: object) -> TaskModel:
        """Return the model of a Task that the informer shows with this status."""
        task = Task(namespace="shop", name="t", uid="u", generation=1, created=START, spec=spec)
        version = 100
        tracked = TrackedTask(
            task=task,
            status=status,
            written=status,
            fence=version,
            stray_copy_possible=status is not PENDING,
        )
        model = cls(tracked, on_record=status, claim=status.concurrency_key)
        model.claim_version, model.epoch_on_record = version, status.epoch
        model.not_before = status.next_attempt_time or 0.0
        for name, value in fields.items():
            setattr(model, name, value)
        return model

    # What happens around it.

    def confirm_completion(self) -> None:
        """Confirm the event about the end; the runner steps the state it was published with."""
        assert self.announcing is not None
        self.is_announced = True
        event = events.CompletionConfirmed()
        before = self.announcing
        self.tracked, todo = machine.step(before, event, self.environment)
        self.announcing = None
        for effect in todo:
            self._execute(effect, before, event)

    def give_turn(self) -> None:
        """Let the dispatch queue come to the Task."""
        self.is_queued = False
        if self.tracked.status.concurrency_key or not self.spec.concurrency_key:
            self.send(events.TurnCame())
        elif self.another_has_key or self.holds:
            self.waits_for_key = True
            self.send(events.TurnCame(key_granted=False))
        else:
            self.has_key, self.waits_for_key = True, False
            self.send(events.TurnCame(key_granted=True))

    def free_key(self) -> None:
        """Give the key to the Task, if it waits for it and nobody else has it."""
        if self.waits_for_key and not self.another_has_key and not self.holds:
            self.waits_for_key, self.has_key, self.is_queued = False, True, True

    def settle(self, copy: Copy, confirmation: Confirmation, *, arrived: bool) -> None:
        """Have the broker answer a publish; of an unanswered one both is possible."""
        copy.is_settled = True
        if confirmation is Confirmation.RETURNED or not arrived:
            copy.is_live = False
        present = (self.tracked.status.current_attempt, self.tracked.status.epoch)
        if confirmation is Confirmation.RETURNED and self.stage is TaskStage.PUBLISHED:
            self.is_returned |= copy.keyed and copy.token == present
        self.send(events.PublishSettled(*copy.token, confirmation, "why"))

    def report(
        self,
        copy: Copy,
        kind: str,
        *,
        retry_after: float | None = None,
        deliveries: int = 0,
        worker: str = "pod-1",
        runs_on: bool = False,
    ) -> None:
        """Have a worker report an attempt.

        Args:
            copy: the message that it got.
            kind: of the report.
            retry_after: with a failure.
            deliveries: of the message that were lost before.
            worker: that reports.
            runs_on: whether another worker runs the attempt, which this one gives back.
        """
        receipt = len(self.inbox)
        status, token = self.tracked.status, copy.token
        counts = self.is_tracked and not (
            status.phase.terminal
            or copy.epoch < status.epoch
            or copy.attempt < status.current_attempt
        )
        original = next(
            (
                old
                for old, one in self.inbox.items()
                if one.token == token
                and one.counts
                and one.kind in RECORDED
                and old not in self.acknowledged
                and kind != "started"
            ),
            None,
        )
        if kind in ENDS:
            self.holds.pop(token, None)
            if not runs_on:
                copy.is_live, copy.reported = False, kind
            self.free_key()
        if not self.is_tracked:
            return  # the inbox itself answers for a Task that is tracked no more
        checkpoint = b'{"n":%d}' % receipt if kind == "checkpoint" else None
        self.inbox[receipt] = Report(
            token, kind, counts, bool(self.tracked.key), original, checkpoint
        )
        if counts and deliveries and kind == "released" and self._is_run_elsewhere(worker):
            self.returned = max(self.returned, deliveries)
        elif counts:
            self._on_report_counts(copy, kind, retry_after, deliveries)
        if counts and checkpoint is not None:
            self.replaced.update(
                old
                for old, one in self.inbox.items()
                if one.kind == "checkpoint" and one.counts and old != receipt
            )
            self.saved, self.lost = checkpoint, 0
        if counts and kind in ("started", "checkpoint"):
            self._hear()
        self.send(self._event(copy, kind, receipt, retry_after, deliveries, worker))

    def _hear(self) -> None:
        if self.stage is TaskStage.PUBLISHED:
            self.alive_until = self.now + WORKER_LOST_SECONDS

    def _is_run_elsewhere(self, worker: str) -> bool:
        tracked = self.tracked
        is_run = self.stage is TaskStage.PUBLISHED and tracked.is_running and not tracked.key
        return is_run and tracked.status.worker != worker and self.now < self.alive_until

    def resume_reports(self) -> None:
        """Have the operator's connection come back."""
        if self.tracked.lost_at is not None:
            self._hear()
        if self.stage is TaskStage.PUBLISHED:
            self.send(events.ReportsResumed())

    def miss(self) -> None:
        """Have the worker of a message that was given back name the attempt no more."""
        if self.returned and self.tracked.status.worker == "pod-1":
            self.alive_until = min(self.alive_until, self.now + MISSED_SECONDS)
        if self.returned:
            self.send(events.AttemptMissed("pod-1"))

    def _on_report_counts(
        self, copy: Copy, kind: str, retry_after: float | None, deliveries: int
    ) -> None:
        if kind == "released" and self._lose(deliveries):
            return
        if kind in RECORDED:
            self.lost = 0
        if kind in (*RECORDED, "stopped"):
            self.ended_tokens.add(copy.token)
        if kind == "failed":
            self._back_off(copy.attempt, retry_after)
        elif kind == "snoozed" and self.tracked.status.snoozes < SNOOZES:
            self.not_before = max(self.not_before, self.now + SNOOZE_SECONDS)
        elif kind == "stopped":
            self.paused_until = self.now + machine.STOPPED_SECONDS
        elif kind == "unknown handler":
            known = self.missing
            if known is None or self.wall >= known.retry_at:
                tries = 0 if known is None else known.tries
                self.paused_until = self.now + min(5.0 * 2.0**tries, 300.0)
            else:
                self.paused_until = self.now + known.retry_at - self.wall

    def _lose(self, deliveries: int) -> bool:
        """Count lost deliveries; return whether the attempt has failed by them."""
        self.lost += deliveries
        if not deliveries or self.lost < MAX_DELIVERIES:
            return False
        status, self.lost = self.tracked.status, 0
        self.ended_tokens.add((status.current_attempt, status.epoch))
        self._back_off(status.current_attempt)
        return True

    def _back_off(self, attempt: int, retry_after: float | None = None) -> None:
        wait = self._backoff_seconds(attempt) if retry_after is None else retry_after
        self.not_before = max(self.not_before, self.now + wait)

    def _event(
        self,
        copy: Copy,
        kind: str,
        receipt: int,
        retry_after: float | None,
        deliveries: int = 0,
        worker: str = "pod-1",
    ) -> events.AttemptReport:
        about = events.ReportedAttempt(
            attempt=copy.attempt, epoch=copy.epoch, token=str(copy.token), receipt=receipt
        )
        end = lifecycle.AttemptEnd(
            attempt=copy.attempt, epoch=copy.epoch, now=self.wall, seconds=1.0, worker="pod-1"
        )
        match kind:
            case "started":
                return events.AttemptStarted(about, "pod-1")
            case "released":
                return events.AttemptReleased(about, deliveries, worker)
            case "checkpoint":
                checkpoint = self.inbox[receipt].checkpoint
                assert checkpoint is not None
                return events.CheckpointSaved(about, checkpoint)
            case "stopped":
                return events.AttemptStopped(about)
            case "snoozed":
                return events.AttemptSnoozed(about, end, SNOOZE_SECONDS)
            case "unknown handler":
                return events.HandlerUnknown(about, "nobody knows it")
            case "succeeded":
                return events.AttemptSucceeded(about, end, {"n": 1})
        failure = lifecycle.AttemptFailure(
            type="Boom",
            message="it broke",
            retryable=kind == "failed",
            retry_after_seconds=retry_after,
        )
        return events.AttemptFailed(about, end, failure)

    def register_handler(self) -> None:
        """Have a worker appear that knows the handler."""
        self.missing = None
        if self.tracked.is_handler_missing:
            self.paused_until = self.now
        self.send(events.HandlerRegistered())

    def report_heartbeat(self, percent: int | None = None) -> None:
        """Have a worker say that it runs the present attempt, if one may."""
        present = (self.tracked.status.current_attempt, self.tracked.status.epoch)
        if any(copy.is_live and copy.token == present for copy in self.copies):
            progress = None if percent is None else ProgressState(percent, "")
            self._hear()
            self.send(events.HeartbeatSeen("pod-1", progress))

    @property
    def is_overdue(self) -> bool:
        """Whether the time of the published attempt is up."""
        since = self.confirmed_at
        return (
            self.stage is TaskStage.PUBLISHED
            and since is not None
            and self.now - since > TIMEOUT + REPORT_GRACE_SECONDS
        )

    def give_up_on_worker(self) -> None:
        """Find that the published attempt is overdue."""
        assert self.confirmed_at is not None
        status = self.tracked.status
        event = events.AttemptUnreported(self.now - self.confirmed_at)
        if self.tracked.published_elsewhere and self.now < self.alive_until:
            before = self.tracked
            self.send(event)
            assert self.tracked is before, "an attempt fails that a worker may rightly run"
            return
        token = (status.current_attempt, status.epoch)
        if self.tracked.maybe_published and not self.tracked.is_running:
            for copy in self.copies:  # a worker that had it would have said so long ago
                copy.is_live &= copy.token != token
        else:
            self.ended_tokens.add(token)
            self.lost = 0
            self.not_before = self.now + self._backoff_seconds(status.current_attempt)
        self.send(event)

    def _backoff_seconds(self, attempt: int) -> float:
        """Return the wait after a failed attempt; its jitter is in the middle, and adds nothing."""
        backoff = (self.environment.policy or Policy()).backoff  # what holds without a TaskQueue
        return min(backoff.initial_seconds * backoff.factor ** (attempt - 1), backoff.max_seconds)

    def begin_write(self) -> None:
        """Send what waits to be written: at most one write is in flight."""
        if not self.in_flight:
            self.in_flight, self.puts = self.puts, []

    def end_write(self, code: int = 200, *, shown_first: bool = False) -> None:
        """Have the API server answer the write in flight.

        Args:
            code: 200, or 422 for a refusal; the phase of a finished Task decides by itself.
            shown_first: a final status leaves the informer before the answer arrives.
        """
        done, self.in_flight = self.in_flight, []
        if not done:
            return
        status = done[-1].status
        if self.is_deleted:
            code = 404
        elif self.on_record.phase.terminal:
            code = 200 if status.phase is self.on_record.phase else 422
        numbers = (status.attempts - self.on_record.attempts, status.epoch - self.on_record.epoch)
        is_behind = code != 404 and min(numbers) < 0
        if is_behind or code != 200:
            code = 422 if is_behind else code
            self.send(
                *(
                    events.StatusRejected(one.status, code, "no", is_behind, one.detail)
                    for one in done
                )
            )
            return
        if status.phase.terminal:
            assert self.final in (None, status), "a final status was written over"
            self.final = status
        assert status.epoch >= self.on_record.epoch
        assert status.attempts >= self.on_record.attempts
        self.on_record = status
        self.version += 1
        if shown_first and status.phase.terminal:
            self.send(events.LeftInformer())
        for one in done:
            written = events.StatusWritten(one.status, one.receipts, self.generation, self.version)
            self.send(written)

    def raise_numbers(self, *, attempts: int, epochs: int) -> None:
        """Have another writer raise attempts and epoch on record."""
        before = self.on_record
        if not self.is_deleted and not before.phase.terminal:
            self.on_record = replace(
                before, attempts=before.attempts + attempts, epoch=before.epoch + epochs
            )

    def edit(self, *, lags: bool = False, **changes: object) -> None:
        """Change the spec; the API server refuses that for a finished Task."""
        if self.is_deleted or self.on_record.phase.terminal:
            return
        self._change(spec=replace(self._last.spec, **changes))  # type: ignore[arg-type]
        if not lags:
            self.show()

    def begin_deletion(self) -> None:
        """Delete the object, which a finalizer keeps."""
        self._change(deleting=True)

    @property
    def _last(self) -> Task:
        """The object as the API server has it."""
        changes = (one.task for one in reversed(self.unseen) if isinstance(one, events.SpecChanged))
        return next(changes, self.tracked.task)

    def _change(self, **changes: object) -> None:
        last = self._last
        self.generation += 1
        changed = replace(last, generation=self.generation, **changes)  # type: ignore[arg-type]
        self.unseen.append(events.SpecChanged(changed))

    def show(self) -> None:
        """Let the informer catch up."""
        unseen, self.unseen = self.unseen, []
        self.send(*unseen)

    def end_reads(self) -> None:
        """Answer the reads of the object that are due."""
        due = [purpose for at, purpose in self.reads if at <= self.now]
        self.reads = [(at, purpose) for at, purpose in self.reads if at > self.now]
        found = None if self.is_deleted else self.on_record
        self.send(*(events.ObjectRead(purpose, found) for purpose in due))

    def pass_time(self, seconds: float) -> None:
        """Let time pass: timers fire at their time, and holds of the key end."""
        until = self.now + seconds
        while due := [(at, timer) for timer, at in self.timers.items() if at <= until + INSTANT]:
            at, timer = min(due, key=lambda one: one[0])
            self.now = max(self.now, at)
            self._end_holds()
            del self.timers[timer]
            if timer is Timer.LOST and self.now + INSTANT > self.alive_until:
                self._lose(self.returned)
            self.send(events.TimerFired(timer))
        self.now = max(self.now, until)
        self._end_holds()

    def _end_holds(self) -> None:
        for token, until in list(self.holds.items()):
            if until <= self.now:
                del self.holds[token]
                for copy in self.copies:
                    copy.is_live &= copy.token != token  # its time is over, wherever it ran
        self.free_key()
