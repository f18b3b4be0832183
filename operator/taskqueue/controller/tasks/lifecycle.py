"""How each event changes the status of a Task. Pure functions without a clock of their own.

Invariants, held by property tests:

* a terminal status never changes;
* `TaskState.attempts` never decreases and never exceeds the policy's max_attempts;
* an outcome counts once: a repeated or older one is judged `Verdict.STALE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from taskqueue.controller.tasks.retry import next_wait_seconds
from taskqueue.limits import HISTORY_LENGTH, SNOOZES, STATUS_MESSAGE_LENGTH
from taskqueue.model.result import ResultReference
from taskqueue.model.task import AttemptRecord, Phase, Policy, ProgressState, TaskState

_CANCELLED = "spec.cancel is true"
_FINAL = frozenset(phase for phase in Phase if phase.terminal)

#: Every phase and those that may follow it; docs/concepts.md draws it. A worker's report may come
#: late, so an attempt may run or end in a Task that waits for something else by then.
PHASES: Mapping[Phase, frozenset[Phase]] = {
    Phase.PENDING: _FINAL
    | {Phase.BLOCKED, Phase.SCHEDULED, Phase.SUSPENDED, Phase.RUNNING, Phase.RETRYING},
    Phase.BLOCKED: _FINAL
    | {Phase.PENDING, Phase.SCHEDULED, Phase.SUSPENDED, Phase.RUNNING, Phase.RETRYING},
    Phase.SCHEDULED: _FINAL
    | {Phase.PENDING, Phase.BLOCKED, Phase.SUSPENDED, Phase.RUNNING, Phase.RETRYING},
    Phase.SUSPENDED: _FINAL
    | {Phase.PENDING, Phase.BLOCKED, Phase.SCHEDULED, Phase.RUNNING, Phase.RETRYING},
    Phase.RUNNING: _FINAL
    | {Phase.PENDING, Phase.BLOCKED, Phase.SCHEDULED, Phase.SUSPENDED, Phase.RETRYING},
    Phase.RETRYING: _FINAL | {Phase.BLOCKED, Phase.SCHEDULED, Phase.SUSPENDED, Phase.RUNNING},
    **{phase: frozenset() for phase in _FINAL},
}


class Verdict(Enum):
    """Whether an event about an attempt counts."""

    COUNTS = auto()
    STALE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """An attempt that ended, as its worker reported it, with times by the operator's clock.

    Attributes:
        attempt: 1-based.
        epoch: of the message it answers.
        now: when the operator received the outcome.
        seconds: how long it ran, by the worker's measure.
        worker: the pod that ran it.
        output: the last lines it has printed, if they are to be kept.
    """

    attempt: int
    epoch: int
    now: float
    seconds: float = 0.0
    worker: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailure:
    """Why an attempt failed.

    Attributes:
        type: error type, matched against the policy's non_retryable.
        message: for people.
        retryable: False when the worker knows that another attempt cannot help.
        retry_after_seconds: the wait the handler asked for, or None.
        reserved: whether a worker or the operator has found the failure, not an application.
    """

    type: str
    message: str
    retryable: bool = True
    retry_after_seconds: float | None = None
    reserved: bool = True


#: An attempt lost its workers, and saved nothing in between.
LOST_TOO_OFTEN = AttemptFailure(
    type="WorkerLost",
    message="the attempt reached its maxDeliveries without saving a checkpoint in between: each "
    "time its worker was killed, ran out of memory or was cut off from the broker",
)
#: A Task was snoozed as often as it may be, and once more.
SNOOZED_TOO_OFTEN = AttemptFailure(
    type="SnoozeLimit",
    message=f"the handler snoozed for the {SNOOZES + 1}st time, the limit is {SNOOZES}: have it "
    "fail or end, and create another Task for what is left",
    retryable=False,
)


def judge(status: TaskState, *, attempt: int, epoch: int) -> Verdict:
    """Return whether an event about (attempt, epoch) may still change the status."""
    if status.phase.terminal or epoch < status.epoch or attempt < status.current_attempt:
        return Verdict.STALE
    return Verdict.COUNTS


def started(status: TaskState, *, attempt: int, now: float, worker: str) -> TaskState:
    """Return the status of a Task with a running attempt."""
    return replace(
        status,
        phase=Phase.RUNNING,
        reason="",
        message="",
        attempts=max(status.attempts, attempt),
        start_time=now if status.start_time is None else status.start_time,
        next_attempt_time=None,
        worker=worker,
        progress=status.progress if worker == status.worker else None,
        running_since=now,
    )


def progressed(status: TaskState, progress: ProgressState) -> TaskState:
    """Return the status of a Task whose running attempt reported progress."""
    if status.phase is not Phase.RUNNING:
        return status
    return replace(status, progress=progress)


def claimed(status: TaskState, *, key: str) -> TaskState:
    """Return the status of a Task that has claimed its concurrency key."""
    after = unblocked(status) if status.phase is Phase.BLOCKED else status
    return replace(after, concurrency_key=key)


def unclaimed(status: TaskState) -> TaskState:
    """Return the status of a Task that releases its concurrency key undispatched."""
    return replace(status, concurrency_key="")


def succeeded(
    status: TaskState,
    ended: AttemptEnd,
    *,
    result: dict[str, object] | None,
    result_ref: ResultReference | None = None,
) -> TaskState:
    """Return the final status after an attempt that succeeded."""
    return replace(
        _recorded(status, ended, outcome=Phase.SUCCEEDED.value),
        phase=Phase.SUCCEEDED,
        completion_time=ended.now,
        result=result,
        result_ref=result_ref,
    )


def failed(
    status: TaskState, ended: AttemptEnd, failure: AttemptFailure, *, policy: Policy, random: float
) -> TaskState:
    """Return the status after a failed attempt: Retrying, with a time, or Failed."""
    after = _recorded(
        status, ended, outcome=Phase.FAILED.value, reason=failure.type, message=failure.message
    )
    description = _describe_failure(ended.attempt, policy, failure.type, failure.message)
    if not failure.retryable or failure.type in policy.non_retryable:
        return _failed_for_good(after, ended, reason="NonRetryable", message=description)
    if ended.attempt >= policy.max_attempts:
        lost = failure.reserved and failure.type == "WorkerLost"
        reason = "WorkerLost" if lost else "RetriesExhausted"
        return _failed_for_good(after, ended, reason=reason, message=description)
    wait = next_wait_seconds(
        policy.backoff,
        failed_attempts=ended.attempt,
        asked_seconds=failure.retry_after_seconds,
        random=random,
    )
    return replace(
        after,
        phase=Phase.RETRYING,
        reason=failure.type,
        message=_clip(description),
        next_attempt_time=ended.now + wait,
    )


def released(status: TaskState) -> TaskState:
    """Return the status of a Task whose worker released its attempt unfinished."""
    if status.phase is not Phase.RUNNING:
        return status
    return replace(status, phase=Phase.PENDING, worker="", progress=None)


def recalled(status: TaskState) -> TaskState:
    """Return the status of a Task whose dispatched attempt is recalled.

    The attempt's number is used again; the raised epoch makes its late outcome stale.
    """
    return replace(released(status), epoch=status.epoch + 1, concurrency_key="")


def renumbered(status: TaskState, found: TaskState) -> TaskState:
    """Return the status with the numbers on record, where another writer has raised them.

    They never decrease. A raised epoch recalls the dispatched attempt.
    """
    attempts, epoch = max(status.attempts, found.attempts), max(status.epoch, found.epoch)
    after = replace(status, attempts=attempts, epoch=epoch)
    return after if epoch == status.epoch else replace(released(after), concurrency_key="")


def checkpointed(status: TaskState, checkpoint: bytes) -> TaskState:
    """Return the status of a Task whose handler saved something for its next start."""
    return replace(status, checkpoint=checkpoint)


def snoozed(status: TaskState, ended: AttemptEnd, *, seconds: float) -> TaskState:
    """Return the status of a Task whose handler asked to be called after some seconds.

    The attempt's number is used again; the raised epoch makes a repetition of the report stale.
    """
    return _waits_for_snooze(
        replace(
            status,
            attempts=max(status.attempts, ended.attempt),
            epoch=max(status.epoch, ended.epoch) + 1,
            snoozes=status.snoozes + 1,
            start_time=ended.now if status.start_time is None else status.start_time,
            next_attempt_time=ended.now + seconds,
            worker="",
            progress=None,
            concurrency_key="",
        )
    )


def unreported(
    status: TaskState, *, now: float, start: float, seconds: int, policy: Policy, random: float
) -> TaskState:
    """Return the status after an attempt that timed out without an outcome.

    Args:
        status: before.
        now: by the operator's clock.
        start: when the attempt is known to have been with a worker.
        seconds: how long it was to run at most.
        policy: of the Task.
        random: for the jitter of the wait.
    """
    ended = AttemptEnd(
        attempt=status.current_attempt,
        epoch=status.epoch,
        now=now,
        seconds=now - start,
        worker=status.worker,
    )
    failure = AttemptFailure(
        type="Timeout",
        message=f"no outcome came within {seconds} s and the grace "
        "period: the worker was lost, or acknowledges without reporting",
    )
    after = failed(status, ended, failure, policy=policy, random=random)
    return replace(after, epoch=status.epoch + 1)


def cancelled(
    status: TaskState, *, now: float, reason: str = "Cancelled", message: str = _CANCELLED
) -> TaskState:
    """Return the final status of a cancelled Task."""
    return _stopped(status, now=now, phase=Phase.CANCELLED, reason=reason, message=message)


def deleted(status: TaskState, *, now: float) -> TaskState:
    """Return the final status, for the archive alone, of a Task whose object is deleted."""
    # What it came to is not on record, even if an outcome had come.
    known = replace(status, phase=Phase.PENDING) if status.phase.terminal else status
    message = "the object was deleted before its end was recorded"
    after = _stopped(known, now=now, phase=Phase.CANCELLED, reason="Deleted", message=message)
    return replace(after, result=None, result_ref=None)


def deadline_exceeded(status: TaskState, *, now: float, seconds: int) -> TaskState:
    """Return the final status of a Task that is over its deadline."""
    return _stopped(
        status,
        now=now,
        phase=Phase.FAILED,
        reason="DeadlineExceeded",
        message=f"it did not end within activeDeadlineSeconds, {seconds} s",
    )


def refused(status: TaskState, *, now: float, reason: str, message: str) -> TaskState:
    """Return the final status of a Task that can never run as it is."""
    return _stopped(status, now=now, phase=Phase.FAILED, reason=reason, message=message)


def blocked(status: TaskState, *, reason: str, message: str) -> TaskState:
    """Return the status of a Task that waits for something outside itself."""
    return replace(status, phase=Phase.BLOCKED, reason=reason, message=_clip(message))


def scheduled(status: TaskState, *, at: float) -> TaskState:
    """Return the status of a Task whose startAfter has not come."""
    return replace(
        status,
        phase=Phase.SCHEDULED,
        reason="StartAfter",
        message="spec.startAfter has not come",
        next_attempt_time=at,
    )


def suspended(status: TaskState) -> TaskState:
    """Return the status of a suspended Task.

    The time of its next attempt stays: a Task that is resumed earlier waits for it.
    """
    return replace(
        status,
        phase=Phase.SUSPENDED,
        reason="Suspended",
        message="spec.suspend is true",
        worker="",
        resumed_time=None,
    )


def resumed(status: TaskState, *, now: float) -> TaskState:
    """Return the status of a Task that is no longer suspended."""
    return replace(unblocked(status), resumed_time=now)


def unblocked(status: TaskState) -> TaskState:
    """Return the status of a Task that is no longer blocked; the time of a next attempt stays."""
    due = status.next_attempt_time if status.attempts else None
    return replace(status, phase=Phase.PENDING, reason="", message="", next_attempt_time=due)


def waits_for_attempt(status: TaskState, policy: Policy) -> TaskState:
    """Return the status of a Task that waits for the time of its next attempt.

    Itself, if it says so already: another obstacle may have come between.
    """
    if status.phase is Phase.RETRYING:
        return status
    if status.is_snoozed:
        return status if status.phase is Phase.SCHEDULED else _waits_for_snooze(status)
    last = status.history[-1]
    description = _describe_failure(last.attempt, policy, last.reason, last.message)
    return replace(status, phase=Phase.RETRYING, reason=last.reason, message=_clip(description))


def _waits_for_snooze(status: TaskState) -> TaskState:
    return replace(
        status,
        phase=Phase.SCHEDULED,
        reason="Snoozed",
        message="the handler asked to be called again at nextAttemptTime",
    )


def _recorded(
    status: TaskState, ended: AttemptEnd, *, outcome: str, reason: str = "", message: str = ""
) -> TaskState:
    start = ended.now - max(ended.seconds, 0.0)
    entry = AttemptRecord(
        attempt=ended.attempt,
        outcome=outcome,
        start_time=start,
        finish_time=ended.now,
        worker=ended.worker,
        reason=reason,
        message=_clip(message),
        output=ended.output,
    )
    return replace(
        status,
        reason="",
        message="",
        attempts=max(status.attempts, ended.attempt),
        epoch=max(status.epoch, ended.epoch),
        history=(*status.history, entry)[-HISTORY_LENGTH:],
        # The start may have been reported late.
        start_time=start if status.start_time is None else min(status.start_time, start),
        next_attempt_time=None,
        worker=ended.worker,
        progress=None,
        concurrency_key="",
    )


def _stopped(
    status: TaskState, *, now: float, phase: Phase, reason: str, message: str
) -> TaskState:
    """End a Task without an outcome; an attempt known to run goes into the history."""
    after = status
    if status.phase is Phase.RUNNING:
        # After a restart only written values are known: then the earliest possible start.
        begun = status.history[-1].finish_time if status.history else status.start_time
        ended = AttemptEnd(
            attempt=status.current_attempt,
            epoch=status.epoch,
            now=now,
            seconds=now - (status.running_since or begun or now),
            worker=status.worker,
        )
        after = _recorded(
            status,
            ended,
            outcome=(phase if phase is Phase.CANCELLED else Phase.FAILED).value,
            reason=reason,
            message=message,
        )
    return replace(
        after,
        phase=phase,
        reason=reason,
        message=_clip(message),
        completion_time=now,
        next_attempt_time=None,
        concurrency_key="",
    )


def _failed_for_good(
    status: TaskState, ended: AttemptEnd, *, reason: str, message: str
) -> TaskState:
    return replace(
        status,
        phase=Phase.FAILED,
        reason=reason,
        message=_clip(message),
        completion_time=ended.now,
    )


def _describe_failure(attempt: int, policy: Policy, error: str, message: str) -> str:
    what = f"{error}: {message}" if message else error
    return f"attempt {attempt} of {policy.max_attempts}: {what}"


def _clip(message: str) -> str:
    too_long = len(message) > STATUS_MESSAGE_LENGTH
    return message[: STATUS_MESSAGE_LENGTH - 1] + "…" if too_long else message
