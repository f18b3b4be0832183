from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure, Verdict
from taskqueue.limits import STATUS_MESSAGE_LENGTH
from taskqueue.model.task import PENDING, Phase, Policy, PolicyOverrides, RetryBackoff, TaskState

POLICY = Policy(max_attempts=3, backoff=RetryBackoff(jitter=0))
BOOM = AttemptFailure(type="ValueError", message="boom")


def ended(attempt: int, now: float = 100.0) -> AttemptEnd:
    return AttemptEnd(attempt=attempt, epoch=0, now=now, seconds=2.0, worker="pod-1")


def fail(status: TaskState, attempt: int, failure: AttemptFailure = BOOM) -> TaskState:
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
    lost = AttemptFailure(type="WorkerLost", message="3 workers lost")
    assert fail(fail(fail(PENDING, 1), 2), 3, lost).reason == "WorkerLost"


def test_an_error_the_worker_calls_final_is_final() -> None:
    status = fail(PENDING, 1, AttemptFailure(type="Bad", message="no", retryable=False))
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
    assert lifecycle.judge(TaskState(epoch=2), attempt=1, epoch=1) is Verdict.STALE


def test_messages_are_clipped() -> None:
    status = fail(PENDING, 1, AttemptFailure(type="E", message="x" * 5000))
    assert len(status.message) == STATUS_MESSAGE_LENGTH
    assert len(status.history[0].message) == STATUS_MESSAGE_LENGTH


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


def test_the_history_keeps_the_last_ten_attempts() -> None:
    policy = Policy(max_attempts=12)
    status = PENDING
    for attempt in range(1, 13):
        status = lifecycle.failed(status, ended(attempt), BOOM, policy=policy, random=0.5)
    assert [entry.attempt for entry in status.history] == list(range(3, 13))
    assert (status.attempts, status.phase) == (12, Phase.FAILED)


# What the operator decides by itself.

RUNNING = lifecycle.started(PENDING, attempt=1, now=90.0, worker="pod-1")


def test_a_recalled_attempt_keeps_its_number_and_its_outcome_is_stale() -> None:
    status = lifecycle.recalled(replace(RUNNING, concurrency_key="k"))
    assert (status.phase, status.worker, status.concurrency_key) == (Phase.PENDING, "", "")
    assert (status.attempts, status.current_attempt, status.epoch) == (1, 1, 1)
    assert status.history == ()
    assert lifecycle.judge(status, attempt=1, epoch=0) is Verdict.STALE
    assert lifecycle.judge(status, attempt=1, epoch=1) is Verdict.COUNTS


def test_a_released_attempt_is_pending_and_its_outcome_still_counts() -> None:
    claimed = replace(RUNNING, concurrency_key="k")
    status = lifecycle.released(claimed)
    assert (status.phase, status.worker, status.epoch) == (Phase.PENDING, "", 0)
    assert status.concurrency_key == "k"  # it is published again at once
    assert lifecycle.released(fail(PENDING, 1)) == fail(PENDING, 1)


def test_an_outcome_frees_the_concurrency_key() -> None:
    claimed = lifecycle.claimed(PENDING, key="k")
    assert claimed.concurrency_key == "k"
    assert fail(claimed, 1).concurrency_key == ""
    assert lifecycle.succeeded(claimed, ended(1), result=None).concurrency_key == ""


def test_a_claim_is_no_longer_blocked() -> None:
    parked = lifecycle.blocked(fail(PENDING, 1), reason="ConcurrencyLimit", message="k")
    status = lifecycle.claimed(parked, key="k")
    assert (status.phase, status.reason, status.message) == (Phase.PENDING, "", "")
    retrying = lifecycle.claimed(fail(PENDING, 1), key="k")
    assert (retrying.phase, retrying.reason) == (Phase.RETRYING, "ValueError")


def test_an_unreported_attempt_has_failed_and_its_outcome_is_stale() -> None:
    status = lifecycle.unreported(
        RUNNING, now=400.0, start=95.0, seconds=7, policy=POLICY, random=0.5
    )
    assert (status.phase, status.reason, status.epoch) == (Phase.RETRYING, "Timeout", 1)
    (entry,) = status.history
    assert (entry.attempt, entry.outcome, entry.reason) == (1, "Failed", "Timeout")
    assert (entry.start_time, entry.finish_time, entry.worker) == (95.0, 400.0, "pod-1")
    assert "within 7 s" in status.message
    assert lifecycle.judge(status, attempt=1, epoch=0) is Verdict.STALE
    assert lifecycle.judge(status, attempt=2, epoch=0) is Verdict.STALE


def test_an_unreported_last_attempt_ends_the_task() -> None:
    status = lifecycle.unreported(
        RUNNING, now=400.0, start=95.0, seconds=7, policy=Policy(max_attempts=1), random=0.5
    )
    assert (status.phase, status.reason) == (Phase.FAILED, "RetriesExhausted")
    assert "Timeout" in status.message


@pytest.mark.parametrize(
    ("end", "phase", "outcome", "reason"),
    [
        (lambda s: lifecycle.cancelled(s, now=100.0), "Cancelled", "Cancelled", "Cancelled"),
        (
            lambda s: lifecycle.deadline_exceeded(s, now=100.0, seconds=60),
            "Failed",
            "Failed",
            "DeadlineExceeded",
        ),
    ],
)
def test_a_running_attempt_that_is_stopped_is_in_the_history(
    end: Callable[[TaskState], TaskState], phase: str, outcome: str, reason: str
) -> None:
    status = end(replace(RUNNING, concurrency_key="k", message="old"))
    assert (status.phase, status.reason, status.completion_time) == (phase, reason, 100.0)
    (entry,) = status.history
    assert (entry.attempt, entry.outcome, entry.reason) == (1, outcome, reason)
    assert (entry.start_time, entry.finish_time, entry.worker) == (90.0, 100.0, "pod-1")
    assert (status.next_attempt_time, status.concurrency_key) == (None, "")


@pytest.mark.parametrize("before", [PENDING, fail(PENDING, 1)])
def test_one_that_does_not_run_ends_without_another_attempt(before: TaskState) -> None:
    status = lifecycle.cancelled(before, now=200.0)
    assert (status.history, status.attempts) == (before.history, before.attempts)
    assert (status.phase, status.next_attempt_time) == (Phase.CANCELLED, None)


def test_when_a_stopped_attempt_began_is_guessed_from_what_was_written() -> None:
    later = replace(fail(PENDING, 1), phase=Phase.RUNNING, running_since=None)
    status = lifecycle.cancelled(later, now=200.0)
    assert status.history[-1].start_time == 100.0  # the former attempt had ended then
    first = replace(RUNNING, running_since=None)
    assert lifecycle.cancelled(first, now=200.0).history[-1].start_time == 90.0


def test_a_refused_task_says_why() -> None:
    status = lifecycle.refused(PENDING, now=100.0, reason="Invalid", message="x" * 2000)
    assert (status.phase, status.reason, len(status.message)) == ("Failed", "Invalid", 1024)
    assert status.history == ()


def test_a_retry_is_waited_for_after_a_suspension_that_was_shorter() -> None:
    held = lifecycle.suspended(fail(PENDING, 1))
    assert (held.phase, held.reason, held.next_attempt_time) == ("Suspended", "Suspended", 101.0)
    back = lifecycle.resumed(held, now=100.5)
    assert (back.phase, back.resumed_time, back.next_attempt_time) == ("Pending", 100.5, 101.0)
    retry = lifecycle.waits_for_attempt(back, POLICY)
    assert (retry.phase, retry.reason) == ("Retrying", "ValueError")
    assert retry.message == "attempt 1 of 3: ValueError: boom"
    assert lifecycle.waits_for_attempt(retry, POLICY) is retry


@pytest.mark.parametrize("before", [PENDING, RUNNING, fail(PENDING, 1)])
def test_a_snooze_is_waited_for_under_the_same_number_after_a_suspension_too(
    before: TaskState,
) -> None:
    ended = AttemptEnd(attempt=before.current_attempt, epoch=before.epoch, now=100.0, worker="w")
    snoozed = lifecycle.snoozed(before, ended, seconds=60.0)
    assert (snoozed.phase, snoozed.reason, snoozed.snoozes) == (Phase.SCHEDULED, "Snoozed", 1)
    assert (snoozed.next_attempt_time, snoozed.epoch) == (160.0, before.epoch + 1)
    assert (snoozed.current_attempt, snoozed.history) == (before.current_attempt, before.history)
    assert snoozed.attempts == before.current_attempt
    assert (snoozed.worker, snoozed.concurrency_key) == ("", "")
    back = lifecycle.resumed(lifecycle.suspended(snoozed), now=110.0)
    again = lifecycle.waits_for_attempt(back, POLICY)
    assert replace(again, resumed_time=None) == snoozed
    assert lifecycle.waits_for_attempt(again, POLICY) is again


def test_a_report_of_an_attempt_that_was_snoozed_is_stale() -> None:
    ended = AttemptEnd(attempt=1, epoch=4, now=100.0, worker="w")
    snoozed = lifecycle.snoozed(PENDING, ended, seconds=60.0)
    assert lifecycle.judge(snoozed, attempt=1, epoch=4) is Verdict.STALE
    assert lifecycle.judge(snoozed, attempt=1, epoch=5) is Verdict.COUNTS


def test_the_end_of_the_last_suspension_is_remembered_until_the_next() -> None:
    back = lifecycle.resumed(lifecycle.suspended(PENDING), now=100.0)
    assert lifecycle.started(back, attempt=1, now=101.0, worker="w").resumed_time == 100.0
    assert lifecycle.suspended(back).resumed_time is None


def test_a_scheduled_time_is_no_retry() -> None:
    status = lifecycle.scheduled(PENDING, at=500.0)
    assert (status.phase, status.reason) == (Phase.SCHEDULED, "StartAfter")
    assert lifecycle.unblocked(status) == PENDING
