"""What the machine promises about one Task, checked at every step; no part of the operator runs.

`TaskRecord` keeps the effects of the machine, and what it cannot know, as plain values.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field, replace

from taskqueue.controller.tasks import effects, events, machine
from taskqueue.controller.tasks.admission import AdmissionStep, decide
from taskqueue.controller.tasks.dependency_graph import INDEPENDENT, DependencyState
from taskqueue.controller.tasks.events import ReadPurpose, Timer
from taskqueue.controller.tasks.lifecycle import PHASES
from taskqueue.controller.tasks.missing_handlers import MissingHandler
from taskqueue.controller.tasks.tracked_task import (
    Dispatched,
    TaskEnvironment,
    TaskStage,
    TrackedTask,
)
from taskqueue.controller.tasks.transition import STAGES
from taskqueue.limits import REPORT_GRACE_SECONDS, SNOOZES
from taskqueue.model.command import CommandKind
from taskqueue.model.task import (
    PENDING,
    Policy,
    RetryBackoff,
    StatusDetail,
    TaskSpec,
    TaskState,
)

START = 1000.0
#: What floats and timers may lose.
INSTANT = 0.001
TIMEOUT = 20
POLICY = Policy(
    max_attempts=3, backoff=RetryBackoff(2.0, 1.5, 20.0, 0.0), attempt_timeout_seconds=TIMEOUT
)
KEY = "k"
MAX_DELIVERIES = POLICY.max_deliveries
#: For how long a handler asks to be left alone.
SNOOZE_SECONDS = 5.0
NOT_FOUND = 404
_NO_CLOSURE = re.compile(r"<function|<bound|<lambda|<built-in| at 0x")

#: What a worker reports of an attempt that is over for it.
ENDS = (
    "succeeded",
    "failed",
    "failed for good",
    "released",
    "stopped",
    "unknown handler",
    "snoozed",
)
OUTCOMES = ("succeeded", "failed", "failed for good")
#: Of these, what is acknowledged only when a write that contains it has succeeded.
RECORDED = (*OUTCOMES, "snoozed")

#: The stage that an effect of the dispatcher goes with.
_STAGE_OF = {
    effects.Enqueue: TaskStage.WAITING,
    effects.Hold: TaskStage.HELD,
    effects.Publish: TaskStage.PUBLISHED,
    effects.AdoptKey: TaskStage.PUBLISHED,
    effects.Withdraw: TaskStage.FINISHED,
}


@dataclass
class Copy:
    """A message of an attempt that was published."""

    attempt: int
    epoch: int
    keyed: bool
    is_settled: bool = False
    #: Whether a worker may run it, now or later.
    is_live: bool = True
    reported: str = ""

    @property
    def token(self) -> tuple[int, int]:
        return self.attempt, self.epoch


@dataclass
class Report:
    """A message of the inbox."""

    token: tuple[int, int]
    kind: str
    counts: bool
    keyed: bool
    #: The unacknowledged report that this one repeats.
    original: int | None = None
    checkpoint: bytes | None = None


@dataclass
class TaskRecord:
    """One Task and what surrounds it.

    Attributes:
        tracked: its state.
        on_record: the status in the API server.
        is_tracked: until its end is in the API server, or it is forgotten.
    """

    tracked: TrackedTask
    #: Monotonic; the wall clock said the same until it was set.
    now: float = START
    step: float = 0.0
    policy: Policy | None = POLICY
    dependencies: DependencyState = INDEPENDENT
    payload_error: str | None = None
    payload_digest: str = ""
    can_publish: bool = True
    #: What was published first of a merged payload, and whether anything else was.
    first_digest: str = ""
    is_payload_changed: bool = False
    leads: bool = True
    is_tracked: bool = True

    on_record: TaskState = PENDING
    generation: int = 1
    version: int = 100
    is_deleted: bool = False
    puts: list[effects.WriteStatus] = field(default_factory=list)
    in_flight: list[effects.WriteStatus] = field(default_factory=list)
    reads: list[tuple[float, ReadPurpose]] = field(default_factory=list)
    unseen: list[events.Event] = field(default_factory=list)

    timers: dict[Timer, float] = field(default_factory=dict)
    is_queued: bool = False
    waits_for_key: bool = False
    has_key: bool = False
    another_has_key: bool = False
    fence_of_another: int = 0
    holds: dict[tuple[int, int], float] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    confirmed_at: float | None = None
    #: Until when the worker that has said it runs the present attempt is not lost.
    alive_until: float = 0.0
    #: Deliveries to count if it is: another worker has given the message back.
    returned: int = 0

    inbox: dict[int, Report] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    #: Receipts in a status that was written, with that status.
    recorded: dict[int, TaskState] = field(default_factory=dict)
    #: What the machine knows of the API server: claim, its version, highest epoch.
    claim: str = ""
    claim_version: int = 0
    epoch_on_record: int = 0
    #: The last checkpoint that counts, and the reports that it has replaced.
    saved: bytes | None = None
    replaced: set[int] = field(default_factory=set)
    #: Deliveries of the present attempt that were lost since.
    lost: int = 0
    ended_tokens: set[tuple[int, int]] = field(default_factory=set)
    not_before: float = 0.0
    paused_until: float = 0.0
    #: What the queue's dispatcher knows of the handler.
    missing: MissingHandler | None = None
    #: Of what was published last with the key, and whether the broker returned that.
    fence: int = 0
    is_returned: bool = False
    final: TaskState | None = None
    announcing: TrackedTask | None = None
    is_announced: bool = False
    ends: int = 0
    ttl_started: int = 0
    #: Since a status was written: how often the object of a refused one was read, and whether
    #: people know.
    reads_since_written: int = 0
    is_reported: bool = False
    commands: list[effects.SendCommand] = field(default_factory=list)
    _events: deque[events.Event] = field(default_factory=deque)

    @property
    def stage(self) -> TaskStage:
        return self.tracked.stage

    @property
    def spec(self) -> TaskSpec:
        return self.tracked.task.spec

    @property
    def wall(self) -> float:
        """What the wall clock says."""
        return self.now + self.step

    @property
    def environment(self) -> TaskEnvironment:
        return TaskEnvironment(
            policy=None if self.policy is None else self.spec.overrides.over(self.policy),
            dependencies=self.dependencies,
            payload_error=self.payload_error,
            payload_digest=self.payload_digest,
            now=self.wall,
            monotonic=self.now,
            random=0.5,
            can_publish=self.can_publish and self.policy is not None,
            leads=self.leads,
            missing_handler=self.missing,
        )

    # Steps.

    def send(self, *more: events.Event) -> None:
        """Have the machine react, as the runner does: also to what comes of it, in order."""
        self._events.extend(more)
        while self._events:
            event = self._events.popleft()
            if self.is_tracked:
                self._step(event)

    def _step(self, event: events.Event) -> None:
        if isinstance(event, events.StatusWritten):
            self._on_written(event)
        before = self.tracked
        after, todo = machine.step(before, event, self.environment)
        self._check_states(before, after, event)
        self._check_stages(before, after, todo)
        self.tracked = after
        for effect in todo:
            self._execute(effect, before, event)
        if isinstance(event, events.StatusRejected):
            self._check_rejection(before, event, todo)
        if isinstance(event, events.ObjectRead):
            self.reads_since_written += event.purpose is ReadPurpose.STATUS_REJECTED
        sent = {(one.attempt, one.epoch) for one in todo if isinstance(one, effects.SendCommand)}
        for owed in set(before.owed) - set(after.owed):
            assert (owed.attempt, owed.epoch) in sent, "a command that was owed is never sent"

    def _on_written(self, event: events.StatusWritten) -> None:
        if not event.status.phase.terminal:
            self.reads_since_written, self.is_reported = 0, False
        for receipt in event.receipts:
            assert isinstance(receipt, int)
            self.recorded.setdefault(receipt, event.status)
        self.epoch_on_record = max(self.epoch_on_record, event.status.epoch)
        if event.status.concurrency_key != self.claim:
            self.claim, self.claim_version = event.status.concurrency_key, event.version

    def _check_states(self, before: TrackedTask, after: TrackedTask, event: events.Event) -> None:
        old, new = before.status, after.status
        assert new.attempts >= old.attempts, "attempts went down"
        assert new.epoch >= old.epoch, "the epoch went down"
        assert new.phase is old.phase or new.phase in PHASES[old.phase], (
            f"{old.phase} is followed by {new.phase} at {event}"
        )
        if old.phase.terminal and isinstance(event, events.ObjectRead):
            numbered = replace(new, attempts=old.attempts, epoch=old.epoch)
            assert numbered == old, "another writer's numbers changed more than numbers"
        elif old.phase.terminal:
            assert new is old, "a final status changed"
        if new.reason == "DeadlineExceeded" and not old.phase.terminal:
            seconds = self.spec.overrides.active_deadline_seconds or 0
            assert self.now + INSTANT >= START + seconds, "it ends before its deadline"
        assert new.snoozes - old.snoozes in (0, 1)
        assert new.snoozes <= SNOOZES, "snoozed more often than allowed"
        if isinstance(event, events.AttemptReport):
            report = self.inbox[event.about.receipt]  # type: ignore[index]
            if not report.counts:
                unchanged = replace(after, receipts=before.receipts)
                assert unchanged == before, "a stale report changed something"
            elif report.kind in OUTCOMES:
                assert (new.phase, new.attempts) != (old.phase, old.attempts) or (
                    new.history != old.history
                ), "an outcome that counts changed nothing"
        elif before.stage is TaskStage.PUBLISHED and after.stage is TaskStage.HELD:
            assert new.epoch > old.epoch, "an attempt was recalled, and its token stays good"
        assert not _NO_CLOSURE.search(repr(after)), "a state cannot be printed"

    def _check_stages(
        self, before: TrackedTask, after: TrackedTask, todo: tuple[effects.Effect, ...]
    ) -> None:
        """Check that the stage moves as `STAGES` says, and the dispatcher with it."""
        stage = before.stage
        path = [_STAGE_OF[type(one)] for one in todo if type(one) in _STAGE_OF]
        if after.stage is TaskStage.CLAIMING:
            path.append(TaskStage.CLAIMING)
        for following in path:
            assert following is stage or following in STAGES[stage], f"{stage} to {following}"
            stage = following
        assert stage is after.stage, f"the dispatcher has it {stage.name}, not {after.stage.name}"

    def _check_rejection(
        self, before: TrackedTask, event: events.StatusRejected, todo: tuple[effects.Effect, ...]
    ) -> None:
        writes = [one for one in todo if isinstance(one, effects.WriteStatus)]
        for one in writes:
            assert one.detail is event.detail.less, "a refused status is written again as it was"
        is_least = event.detail is StatusDetail.BARE or event.code == NOT_FOUND
        if event.status is before.status and (is_least or event.is_behind):
            assert Timer.READ in self.timers, "a status was refused, and nothing follows"
            held = self.reads_since_written and self.tracked.receipts
            assert event.is_behind or not held, "an outcome is held that cannot be recorded"
        elif event.status is before.status:
            assert writes or self._is_being_written, "a status was refused, and nothing follows"

    # Effects.

    def _execute(self, effect: effects.Effect, before: TrackedTask, event: events.Event) -> None:
        match effect:
            case effects.Enqueue():
                self._check_nobody_runs_it(event)
                self.returned = 0
                self.is_queued, self.confirmed_at, self.waits_for_key = True, None, False
            case effects.Hold() | effects.Withdraw():
                self.is_queued, self.confirmed_at, self.returned = False, None, 0
            case effects.AdoptKey():
                self.has_key = True
            case effects.ReleaseKey():
                self._release_key()
            case effects.HoldKey():
                self.holds[effect.attempt, effect.epoch] = self.now + effect.seconds
                assert effect.seconds >= TIMEOUT + REPORT_GRACE_SECONDS
            case effects.Publish():
                self._publish(effect, before)
            case effects.NoteHandlerMissing(missing):
                assert missing.retry_at > self.wall
                self.missing = missing
            case effects.NoteHandlerFound():
                assert self.missing is not None, "a handler is found that was not missing"
                self.missing = None
            case effects.MarkConfirmed():
                self.confirmed_at = self.now
            case effects.MarkDelivered() if self.stage is TaskStage.PUBLISHED:
                self.confirmed_at = self.now - effect.seconds
            case effects.WriteStatus():
                self._write(effect)
            case effects.ReportRefusal():
                assert self.reads_since_written, "an Event comes before it was read"
                assert not self.is_reported, "an Event comes twice"
                self.is_reported = True
            case effects.SendCommand():
                self._command(effect, before, event)
            case effects.Acknowledge():
                for receipt in effect.receipts:
                    assert isinstance(receipt, int)
                    self._acknowledge(receipt, effect, self._is_dropped(before, event))
            case effects.PublishCompletion():
                self._announce(effect, event)
            case effects.RecordEnd():
                assert self.on_record == self.tracked.status, "an end that is not on record"
                assert self.tracked.task.generation == self.generation, "an old generation ended"
                self._stop_tracking()
            case effects.Forget():
                assert self._is_dropped(before, event)
                self._stop_tracking()
            case effects.StartTtl():
                self.ttl_started += 1
            case effects.SetTimer(timer, None):
                self.timers.pop(timer, None)
            case effects.SetTimer(timer, seconds) if seconds is not None:
                self.timers[timer] = self.now + seconds
            case effects.CancelTimers():
                self.timers.clear()
            case effects.Reconcile():
                self._events.append(events.EnvironmentChanged())
            case effects.ReadObject():
                self.reads.append((self.now, effect.purpose))

    def _is_dropped(self, before: TrackedTask, event: events.Event) -> bool:
        """Return whether nothing will be written any more, if the Task ends by this event."""
        deleting = before.task.deleting and before.stage is not TaskStage.FINISHED
        return deleting or isinstance(event, events.ObjectRead)

    def _release_key(self) -> None:
        for copy in self.copies:
            if copy.keyed and copy.is_live:
                assert copy.token in self.holds, "a key is released while its attempt may run"
        # Claimed once more, it gets another number: somebody may have had the key meanwhile.
        self.has_key = self.waits_for_key = self.is_returned = False

    def _check_nobody_runs_it(self, event: events.Event) -> None:
        """Check that an attempt is not published beside the worker whose message was given back."""
        if self.returned and self.now + INSTANT < self.alive_until:
            gives_up = isinstance(event, events.AttemptReleased) and (
                not event.deliveries or event.worker == self.tracked.status.worker
            )
            assert gives_up or isinstance(event, events.PublishSettled), "published beside itself"

    def _check_digest(self) -> None:
        status = self.tracked.status
        self.first_digest = self.first_digest or self.payload_digest
        self.is_payload_changed |= self.payload_digest != self.first_digest
        assert status.payload_digest == self.first_digest, "the first payload is not remembered"
        changed = status.payload_changed_time is not None
        assert changed == self.is_payload_changed, "a change of the payload is not noticed"

    def _publish(self, effect: effects.Publish, before: TrackedTask) -> None:
        spec, token = self.spec, (effect.attempt, effect.epoch)
        assert before.stage is not TaskStage.PUBLISHED, "it is published already"
        assert self.environment.can_publish, "published while the queue is held or not declared"
        assert not spec.suspend, "published though suspended"
        assert not spec.cancel, "published though cancelled"
        assert not self.tracked.task.deleting, "published though deleted"
        now = self.now + INSTANT
        assert now >= self.not_before, "published before its time"
        assert now >= self.paused_until, "published at once after a passing obstacle"
        assert now >= (spec.start_after or 0.0), "published before startAfter"
        assert self.payload_error is None, "published without its payload"
        self._check_digest()
        assert token not in self.ended_tokens, "an attempt that has ended is published"
        assert self.tracked.status.checkpoint == self.saved, "published without its checkpoint"
        assert effect.deliveries == self.lost, "lost deliveries are not counted"
        assert effect.deliveries < MAX_DELIVERIES, "it loses workers without end"
        if not self.copies and self.tracked.status.attempts == 0:
            assert not self.dependencies.waiting, "published before its dependencies"
        claimed = self.tracked.status.concurrency_key
        assert bool(claimed) == (effect.fence is not None)
        assert claimed or not spec.concurrency_key, "published without its key"
        if claimed:
            self._check_claim(effect, claimed)
        known = self.tracked.status.time_limit and not self.tracked.published_elsewhere
        assert known or before.stray_copy_possible, "its time limit is not known"
        if not before.stray_copy_possible:
            self.alive_until = 0.0
        self.copies.append(Copy(*token, keyed=bool(claimed)))
        self.is_queued, self.confirmed_at = False, None

    def _check_claim(self, effect: effects.Publish, claimed: str) -> None:
        assert self.claim == claimed, "published before its claim is on record"
        assert self.leads, "published with a claim by a process that may not lead"
        assert self.has_key
        assert not any(copy.keyed and copy.is_live for copy in self.copies), "beside itself"
        assert effect.fence is not None
        if self.is_returned:
            assert effect.fence == self.fence, "nobody had the key meanwhile"
        else:
            assert effect.fence >= self.claim_version, "not the number of its claim"
            assert effect.fence > self.fence, "a fencing number is used again"
        self.fence, self.is_returned = effect.fence, False

    def _write(self, effect: effects.WriteStatus) -> None:
        status = effect.status
        assert status is self.tracked.status, "something else than the present status is written"
        assert effect.urgent or not status.phase.terminal, "an end that is not urgent"
        newest = status.history[-1].attempt if status.history else 0
        for receipt in effect.receipts:
            assert isinstance(receipt, int)
            report = self.inbox[receipt]
            if report.counts and report.kind in OUTCOMES:
                assert newest >= report.token[0], "a write does not contain its outcome"
            if report.counts and report.kind == "snoozed":
                done = newest >= report.token[0] or status.epoch > report.token[1]
                assert done, "a write does not contain its snooze"
        self.puts.append(effect)

    def _command(
        self, effect: effects.SendCommand, before: TrackedTask, event: events.Event
    ) -> None:
        self.commands.append(effect)
        if self.epoch_on_record > effect.epoch:
            return
        assert self.stage is TaskStage.FINISHED, "a command before the raised epoch is on record"
        ends_now = before.stage is not TaskStage.FINISHED
        present = (before.status.current_attempt, before.status.epoch)
        dropped = self._is_dropped(before, event)
        assert (
            dropped
            or isinstance(event, events.StatusWritten)
            or (
                ends_now
                and effect.kind is CommandKind.CANCEL
                and (effect.attempt, effect.epoch) == present
            )
        ), "a command about an attempt that goes on"

    def _acknowledge(self, receipt: int, effect: effects.Acknowledge, dropped: bool) -> None:
        report = self.inbox[receipt]
        assert receipt not in self.acknowledged, "acknowledged twice"
        self.acknowledged.add(receipt)
        if effect.dropped == "unrecorded":
            assert self.is_reported, "an outcome is let go of without a word"
            return
        if dropped:
            return
        if report.counts and (report.kind in RECORDED or (report.keyed and report.kind in ENDS)):
            assert receipt in self.recorded, f"{report} is acknowledged before its write"
            if self.recorded[receipt].phase.terminal:
                assert self.is_announced, "an end is acknowledged before its event is confirmed"
        if report.counts and report.kind == "checkpoint":
            replaced = receipt in self.replaced or self.tracked.status.phase.terminal
            on_record = self.recorded.get(receipt)
            kept = on_record is not None and on_record.checkpoint == report.checkpoint
            assert replaced or kept, "a checkpoint is acknowledged before its write"
        if report.original is not None:
            assert report.original in (*self.acknowledged, *effect.receipts), (
                "the repetition of an outcome is acknowledged before the outcome's write"
            )

    def _announce(self, effect: effects.PublishCompletion, event: events.Event) -> None:
        assert isinstance(event, events.StatusWritten)
        assert event.status.phase.terminal, "an end is announced that is not on record"
        assert self.announcing is None, "an end is announced twice"
        assert effect.reported == bool(self.tracked.receipts)
        self.announcing = self.tracked

    def _stop_tracking(self) -> None:
        self.is_tracked = False
        self.ends += 1

    # What holds when nothing happens.

    @property
    def _is_being_read(self) -> bool:
        return bool(self.reads) or Timer.READ in self.timers

    @property
    def _is_being_written(self) -> bool:
        tracked = self.tracked
        if tracked.stage is not TaskStage.FINISHED and tracked.status == tracked.written:
            return True
        return tracked.write_at is not None or bool(self.puts or self.in_flight)

    def check(self) -> None:
        """Check a state at rest."""
        tracked = self.tracked
        if not self.is_tracked:
            assert not self.timers, "a timer is left"
            assert not self.has_key, "a key is left"
            assert not self.waits_for_key, "it waits for its key without end"
            assert not tracked.owed, "a command was never sent"
            return
        assert self._is_being_written or self._is_being_read, "what is true is never written"
        assert (Timer.WRITE in self.timers) == (tracked.write_at is not None)
        assert (Timer.RECONCILE in self.timers) == (tracked.reconcile_at is not None)
        assert (Timer.LOST in self.timers) == bool(tracked.returned), "a worker is awaited forever"
        assert tracked.returned == self.returned
        if tracked.reconcile_at is not None:
            due = dict(tracked.anchors).get(tracked.reconcile_at, 0.0)
            late = self.timers[Timer.RECONCILE] - due
            assert abs(late) < INSTANT, "it is not woken when its time comes"
        assert (self.has_key or self.waits_for_key) == bool(tracked.key), "who has the key?"
        placed = self.is_queued or self.waits_for_key
        assert placed == (self.stage is TaskStage.WAITING), "it waits for no turn"
        if self.stage is TaskStage.FINISHED:
            assert tracked.status.phase.terminal or self._is_being_read
            return
        assert not tracked.status.phase.terminal
        assert not tracked.task.deleting, "it is deleted, and goes on"
        assert not self.spec.cancel, "it is cancelled, and goes on"
        assert not self.spec.suspend or self.stage is TaskStage.HELD, "it is suspended, and goes on"
        if self.stage is TaskStage.PUBLISHED:
            assert tracked.status.reason != "QueueFull", "it had its turn, and is Blocked"
        if self.stage is TaskStage.HELD:
            on_record = ("", tracked.status.concurrency_key)
            assert tracked.key in on_record, "it is held, and keeps a key from others"
            decision = decide(
                tracked.task,
                tracked.status,
                self.environment,
                dispatched=Dispatched.NO,
                hold_until=tracked.hold_until,
                anchors=tracked.anchors,
            )
            assert decision.step is AdmissionStep.HOLD, "it is held, and nothing holds it"
            assert decision.reconsider_at == tracked.reconcile_at, "it will not be woken in time"
