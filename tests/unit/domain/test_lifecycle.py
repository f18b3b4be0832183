from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.domain import lifecycle
from taskqueue.domain.lifecycle import Ended, Failure, Verdict
from taskqueue.domain.task import (
    HISTORY_LIMIT,
    MESSAGE_LIMIT,
    PENDING,
    Backoff,
    Phase,
    Policy,
    PolicyOverrides,
    TaskStatus,
)

POLICY = Policy(max_attempts=3, backoff=Backoff(jitter=0))
BOOM = Failure(type="ValueError", message="boom")


def ended(attempt: int, now: float = 100.0) -> Ended:
    return Ended(attempt=attempt, epoch=0, now=now, seconds=2.0, worker="pod-1")


def fail(status: TaskStatus, attempt: int, failure: Failure = BOOM) -> TaskStatus:
    return lifecycle.failed(status, ended(attempt), failure, policy=POLICY, random=0.5)


def test_success_at_the_first_attempt() -> None:
    status = lifecycle.succeeded(PENDING, ended(1), result={"n": 1})
    assert status.phase is Phase.SUCCEEDED
    assert status.attempts == 1
    assert (status.start_time, status.completion_time) == (98.0, 100.0)
    assert status.result == {"n": 1}
    assert [entry.outcome for entry in status.history] == ["Succeeded"]


def test_two_failures_and_a_success_leave_three_entries() -> None:
    status = lifecycle.succeeded(fail(fail(PENDING, 1), 2), ended(3), result=None)
    assert status.attempts == 3
    assert [entry.outcome for entry in status.history] == ["Failed", "Failed", "Succeeded"]
    assert [entry.attempt for entry in status.history] == [1, 2, 3]
    assert (status.reason, status.message) == ("", "")


def test_a_failure_is_retried_after_the_back_off() -> None:
    status = fail(PENDING, 1)
    assert status.phase is Phase.RETRYING
    assert status.next_attempt_time == 101.0
    assert status.reason == "ValueError"
    assert status.message == "attempt 1 of 3: ValueError: boom"


def test_the_last_failure_ends_the_task() -> None:
    status = fail(fail(fail(PENDING, 1), 2), 3)
    assert status.phase is Phase.FAILED
    assert status.reason == "RetriesExhausted"
    assert status.next_attempt_time is None
    assert status.completion_time == 100.0


def test_a_lost_worker_at_the_last_attempt_is_named_as_the_reason() -> None:
    lost = Failure(type="WorkerLost", message="3 workers lost")
    assert fail(fail(fail(PENDING, 1), 2), 3, lost).reason == "WorkerLost"


def test_an_error_the_worker_calls_final_is_final() -> None:
    status = fail(PENDING, 1, Failure(type="Bad", message="no", retryable=False))
    assert (status.phase, status.reason) == (Phase.FAILED, "NonRetryable")


def test_an_error_type_the_policy_calls_final_is_final() -> None:
    policy = Policy(non_retryable=frozenset({"ValueError"}))
    status = lifecycle.failed(PENDING, ended(1), BOOM, policy=policy, random=0.5)
    assert (status.phase, status.reason) == (Phase.FAILED, "NonRetryable")


def test_an_outcome_above_the_recorded_attempt_counts_one_below_does_not() -> None:
    status = fail(PENDING, 1)
    assert lifecycle.judge(status, attempt=1, epoch=0) is Verdict.STALE
    assert lifecycle.judge(status, attempt=2, epoch=0) is Verdict.COUNTS
    assert lifecycle.judge(status, attempt=3, epoch=0) is Verdict.COUNTS


def test_a_started_attempt_is_still_the_one_awaited() -> None:
    status = lifecycle.started(PENDING, attempt=1, now=5.0, worker="pod-1")
    assert (status.phase, status.attempts, status.start_time) == (Phase.RUNNING, 1, 5.0)
    assert lifecycle.judge(status, attempt=1, epoch=0) is Verdict.COUNTS


def test_an_outcome_of_an_earlier_epoch_is_stale() -> None:
    assert lifecycle.judge(TaskStatus(epoch=2), attempt=1, epoch=1) is Verdict.STALE


def test_messages_are_clipped() -> None:
    status = fail(PENDING, 1, Failure(type="E", message="x" * 5000))
    assert len(status.message) == MESSAGE_LIMIT
    assert len(status.history[0].message) == MESSAGE_LIMIT


@given(
    st.builds(
        PolicyOverrides,
        max_attempts=st.none() | st.integers(1, 9),
        factor=st.none() | st.floats(1, 5),
        max_deliveries=st.none() | st.integers(1, 9),
    )
)
def test_a_tasks_own_leaf_wins_and_the_rest_is_inherited(own: PolicyOverrides) -> None:
    merged = own.over(POLICY)
    assert merged.max_attempts == (own.max_attempts or POLICY.max_attempts)
    assert merged.max_deliveries == (own.max_deliveries or POLICY.max_deliveries)
    assert merged.backoff.factor == (own.factor or POLICY.backoff.factor)
    assert merged.backoff.initial_seconds == POLICY.backoff.initial_seconds
    assert merged.attempt_timeout_seconds == POLICY.attempt_timeout_seconds


class Life(RuleBasedStateMachine):
    """Outcomes in any order, repeated, late: the invariants hold."""

    def __init__(self) -> None:
        super().__init__()
        self.status = PENDING
        self.before = PENDING
        self.now = 1000.0
        self.final: TaskStatus | None = None

    def apply(self, attempt: int, change: TaskStatus | None) -> None:
        self.before = self.status
        if lifecycle.judge(self.status, attempt=attempt, epoch=0) is Verdict.COUNTS and change:
            self.status = change
            if change.phase.terminal:
                self.final = change

    def order(self, offset: int) -> int:
        """Only ordered attempts can have an outcome: at most the current one, and old ones."""
        return max(1, self.status.current_attempt - offset)

    @rule(offset=st.integers(0, 3), worker=st.sampled_from(["a", "b"]))
    def start(self, offset: int, worker: str) -> None:
        attempt = self.order(offset)
        self.apply(
            attempt, lifecycle.started(self.status, attempt=attempt, now=self.now, worker=worker)
        )

    @rule(offset=st.integers(0, 3))
    def succeed(self, offset: int) -> None:
        attempt = self.order(offset)
        self.apply(attempt, lifecycle.succeeded(self.status, ended(attempt, self.now), result=None))

    @rule(offset=st.integers(0, 3), retryable=st.booleans(), wish=st.none() | st.floats(0, 10))
    def fail(self, offset: int, retryable: bool, wish: float | None) -> None:
        attempt = self.order(offset)
        failure = Failure(type="E", message="", retryable=retryable, retry_after_seconds=wish)
        self.apply(
            attempt,
            lifecycle.failed(
                self.status, ended(attempt, self.now), failure, policy=POLICY, random=0.1
            ),
        )

    @precondition(lambda self: not self.status.phase.terminal)
    @rule()
    def restart_of_the_operator(self) -> None:
        """What was never written is gone: the status falls back to one written before."""
        if self.final is None:
            self.status = self.before = PENDING

    @rule(seconds=st.floats(0.1, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def a_terminal_status_never_changes(self) -> None:
        assert self.final is None or self.status == self.final

    @invariant()
    def attempts_never_decrease_nor_exceed_the_maximum(self) -> None:
        assert self.before.attempts <= self.status.attempts <= POLICY.max_attempts

    @invariant()
    def the_history_is_short_and_in_order(self) -> None:
        numbers = [entry.attempt for entry in self.status.history]
        assert numbers == sorted(set(numbers))
        assert len(numbers) <= HISTORY_LIMIT

    @invariant()
    def only_a_retrying_task_has_a_next_attempt(self) -> None:
        assert (self.status.next_attempt_time is not None) == (self.status.phase is Phase.RETRYING)

    @invariant()
    def a_task_is_completed_exactly_when_its_phase_is_terminal(self) -> None:
        assert (self.status.completion_time is not None) == self.status.phase.terminal


TestLife = Life.TestCase
