"""A Task's life in any order of events, decided and judged by the pure functions alone.

The machine keeps what the operator has in memory, what the API server has, and every token ever
given out. An operator that dies leaves what was written, and outcomes nobody acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.admission import AdmissionStep, decide
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure, Verdict
from taskqueue.controller.tasks.tracked_task import Dispatched, TaskEnvironment
from taskqueue.limits import HISTORY_LENGTH
from taskqueue.model.task import (
    PENDING,
    Phase,
    Policy,
    PolicyOverrides,
    RetryBackoff,
    Task,
    TaskSpec,
    TaskState,
)

POLICY = Policy(
    max_attempts=12, backoff=RetryBackoff(2.0, 1.5, 20.0, 0.0), attempt_timeout_seconds=30
)


@dataclass(frozen=True)
class Token:
    """What proves an attempt: nobody can make one that was never given out."""

    attempt: int
    epoch: int


class Life(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.spec = TaskSpec(
            queue="q",
            handler="h",
            concurrency_key="k",
            overrides=PolicyOverrides(active_deadline_seconds=600),
        )
        self.status = self.written = PENDING
        self.dispatched = Dispatched.NO
        self.tokens: list[Token] = []
        #: Outcomes that changed the status; those in what is written need no repetition.
        self.counted: set[Token] = set()
        self.counted_in_written: set[Token] = set()
        #: Not dispatched before: its handler asked for that.
        self.snoozed_until = 0.0

    # What the operator does.

    def become(self, status: TaskState) -> None:
        before, self.status = self.status, status
        assert not before.phase.terminal or status == before, "a final status changed"
        assert status.attempts >= before.attempts, "attempts went down"
        assert status.epoch >= before.epoch, "the epoch went down"

    def reconcile(self) -> AdmissionStep:
        if self.status.phase.terminal:
            return AdmissionStep.END
        task = Task(
            namespace="shop", name="t", uid="u", generation=1, created=1000.0, spec=self.spec
        )
        environment = TaskEnvironment(policy=self.spec.overrides.over(POLICY), now=self.now)
        decision = decide(task, self.status, environment, dispatched=self.dispatched)
        raised = decision.status.epoch > self.status.epoch
        self.become(decision.status)
        if decision.step is not AdmissionStep.GO:
            self.dispatched = Dispatched.NO
        if raised:
            self.write()  # before anything is done about it
        return decision.step

    @rule()
    def dispatch(self) -> None:
        if self.reconcile() is not AdmissionStep.GO or self.dispatched is Dispatched.YES:
            return
        assert not self.spec.cancel, "a cancelled Task is given an attempt"
        assert not self.spec.suspend, "a suspended Task is given an attempt"
        if not self.status.concurrency_key:
            self.become(lifecycle.claimed(self.status, key="k"))
            self.write()
        assert self.written.concurrency_key == "k"
        token = Token(self.status.current_attempt, self.status.epoch)
        assert token.attempt <= POLICY.max_attempts
        assert self.now >= self.snoozed_until, "a snoozed Task is given an attempt"
        assert token not in self.counted, "an attempt that has ended is given out again"
        if token not in self.tokens:
            self.tokens.append(token)
        self.dispatched = Dispatched.YES

    @rule()
    def write(self) -> None:
        before, self.written = self.written, self.status
        self.counted_in_written = set(self.counted)
        assert not before.phase.terminal or self.written == before, "an end was written over"
        assert self.written.attempts >= before.attempts
        assert self.written.epoch >= before.epoch

    @rule()
    def restart(self) -> None:
        self.status = replace(self.written, running_since=None)
        self.counted = set(self.counted_in_written)
        # A snooze that was not written is not acknowledged either, and is reported again.
        self.snoozed_until = 0.0
        if self.status.is_snoozed and self.status.next_attempt_time is not None:
            self.snoozed_until = self.status.next_attempt_time
        self.dispatched = Dispatched.MAYBE
        self.reconcile()

    @precondition(lambda self: self.dispatched is Dispatched.YES)
    @rule()
    def attempt_is_unreported(self) -> None:
        before = self.status
        self.become(
            lifecycle.unreported(
                before, now=self.now, start=self.now - 40, seconds=30, policy=POLICY, random=0.5
            )
        )
        assert self.status.epoch == before.epoch + 1
        self.counted.add(Token(before.current_attempt, before.epoch))
        self.dispatched = Dispatched.NO
        self.write()

    # What people do.

    @precondition(lambda self: not self.written.phase.terminal)
    @rule(suspend=st.booleans())
    def suspends_or_resumes(self, suspend: bool) -> None:
        self.spec = replace(self.spec, suspend=suspend)
        self.reconcile()
        if suspend and not self.status.phase.terminal:
            assert self.status.phase is Phase.SUSPENDED

    @precondition(lambda self: not self.written.phase.terminal)
    @rule(sure=st.integers(0, 5))
    def cancels(self, sure: int) -> None:
        if sure == 0:
            self.spec = replace(self.spec, cancel=True)
            self.reconcile()
            assert self.status.phase.terminal

    @rule(seconds=st.sampled_from([0.5, 3.0, 25.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.reconcile()

    # What workers report: of any attempt ever ordered, once or again, early or late.

    @precondition(lambda self: self.tokens)
    @rule(which=st.integers(0, 50), latest=st.booleans(), kind=st.sampled_from("SFfsrcz"))
    def reports(self, which: int, latest: bool, kind: str) -> None:
        token = self.tokens[-1] if latest else self.tokens[which % len(self.tokens)]
        verdict = lifecycle.judge(self.status, attempt=token.attempt, epoch=token.epoch)
        if verdict is Verdict.STALE:
            return
        assert token not in self.counted, "an outcome counts a second time"
        ended = AttemptEnd(
            attempt=token.attempt, epoch=token.epoch, now=self.now, seconds=1.0, worker="w"
        )
        match kind:
            case "S":
                self.become(lifecycle.succeeded(self.status, ended, result={}))
            case "F" | "f":
                failure = AttemptFailure(
                    type="Boom", message="", retryable=kind == "f" or which > 5
                )
                self.become(
                    lifecycle.failed(self.status, ended, failure, policy=POLICY, random=0.5)
                )
            case "s":
                started = lifecycle.started(
                    self.status, attempt=token.attempt, now=self.now, worker="w"
                )
                self.become(started)
                return
            case "r":
                self.become(lifecycle.released(self.status))
                self.dispatched = Dispatched.NO
                return
            case "c":
                self.become(lifecycle.recalled(self.status))
            case "z":
                before = self.status
                self.become(lifecycle.snoozed(before, ended, seconds=10.0))
                assert self.status.current_attempt == before.current_attempt
                self.snoozed_until = self.now + 10.0
        self.counted.add(token)
        self.dispatched = Dispatched.NO

    @rule(attempt=st.integers(1, 12), less=st.integers(1, 3))
    def reports_a_past_epoch(self, attempt: int, less: int) -> None:
        old = self.status.epoch - less
        assert lifecycle.judge(self.status, attempt=attempt, epoch=old) is Verdict.STALE

    @rule(less=st.integers(1, 12))
    def reports_a_past_attempt(self, less: int) -> None:
        old = self.status.current_attempt - less
        epoch = self.status.epoch
        assert lifecycle.judge(self.status, attempt=old, epoch=epoch) is Verdict.STALE

    # What must be true of both the memory and the API server.

    @invariant()
    def attempts_are_within_the_policy(self) -> None:
        for status in (self.status, self.written):
            assert 0 <= status.attempts <= POLICY.max_attempts
            assert len(status.history) <= HISTORY_LENGTH

    @invariant()
    def the_history_is_in_order(self) -> None:
        for status in (self.status, self.written):
            numbers = [entry.attempt for entry in status.history]
            assert numbers == sorted(set(numbers))
            assert all(number <= status.attempts for number in numbers)
            times = [entry.finish_time for entry in status.history]
            assert times == sorted(times)

    @invariant()
    def a_final_status_is_whole(self) -> None:
        for status in (self.status, self.written):
            assert (status.completion_time is not None) == status.phase.terminal
            if status.phase.terminal:
                assert (status.next_attempt_time, status.concurrency_key) == (None, "")

    @invariant()
    def a_retrying_task_has_a_time(self) -> None:
        if self.status.phase is Phase.RETRYING:
            assert self.status.next_attempt_time is not None


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=200, stateful_step_count=50)
