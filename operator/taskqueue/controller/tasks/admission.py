"""What keeps a Task from being dispatched, and what ends it without any worker: one decision.

`decide` is asked whenever anything about a Task may have changed, and answers from what is true
now: nothing has to be remembered, so that a new leader decides as the former one did. What a
dispatched Task reacts to is being cancelled, suspended, and its deadline; the rest matters before.

First that holds, in this order: cancelled; suspended; over its deadline; without its TaskQueue;
dependencies; payload; startAfter; the wait before a retry; whatever passing obstacle was met last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.dependency_graph import INDEPENDENT, DependencyState
from taskqueue.model.task import Phase, Policy, Task, TaskState

#: Names told in a message; the others are counted.
_NAMES_TOLD = 5


class AdmissionStep(Enum):
    """What is to be done with a Task."""

    #: It has its final status.
    END = auto()
    #: It is not to be dispatched, and taken back if it is.
    HOLD = auto()
    #: It may be dispatched, or stay so.
    GO = auto()


class Dispatched(Enum):
    """Whether a worker may have the Task's present attempt."""

    NO = auto()
    #: A former leader, or a lost connection, may have brought it to the broker.
    MAYBE = auto()
    YES = auto()


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """A step, the status that goes with it, and when time alone may change the decision."""

    step: AdmissionStep
    status: TaskState
    look_again: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnvironment:
    """What is known around a Task.

    Attributes:
        policy: its own settings over its queue's; None: there is no such TaskQueue.
        dependencies: what its dependencies keep it from.
        payload_problem: why its payload cannot be put together; "": it is being read; None: it can.
        hold_until: an obstacle its status tells of is met until then, such as a handler nobody has.
    """

    policy: Policy | None
    dependencies: DependencyState = INDEPENDENT
    payload_problem: str | None = None
    hold_until: float = 0.0


def decide(
    task: Task, status: TaskState, around: TaskEnvironment, *, dispatched: Dispatched, now: float
) -> AdmissionDecision:
    """Return what is to be done with a Task.

    Args:
        task: as last seen.
        status: what is true of it, not terminal.
        around: what is known around it.
        dispatched: whether an attempt of it is in the broker or with a worker.
        now: seconds since the epoch.
    """
    spec = task.spec
    if spec.cancel:
        return AdmissionDecision(AdmissionStep.END, lifecycle.cancelled(status, now=now))
    if spec.suspend:
        out = dispatched is not Dispatched.NO and status.phase is not Phase.SUSPENDED
        held = lifecycle.taken_back(status) if out else status
        return AdmissionDecision(AdmissionStep.HOLD, lifecycle.suspended(held))
    if status.phase is Phase.SUSPENDED:
        status = lifecycle.resumed(status, now=now)
    deadline, seconds = _deadline(task, status, around)
    if deadline is not None and now >= deadline:
        over = lifecycle.deadline_exceeded(status, now=now, seconds=seconds)
        return AdmissionDecision(AdmissionStep.END, over)
    if dispatched is Dispatched.YES:
        if around.policy is None and status.phase is not Phase.RUNNING:
            return AdmissionDecision(AdmissionStep.GO, _without_queue(task, status), deadline)
        return AdmissionDecision(AdmissionStep.GO, _free(status), deadline)
    decision = _before_dispatch(task, status, around, now)
    if deadline is None or decision.step is AdmissionStep.END:
        return decision
    first = deadline if decision.look_again is None else min(deadline, decision.look_again)
    return AdmissionDecision(decision.step, decision.status, first)


def _before_dispatch(
    task: Task, status: TaskState, around: TaskEnvironment, now: float
) -> AdmissionDecision:
    if around.policy is None:
        return AdmissionDecision(AdmissionStep.HOLD, _without_queue(task, status))
    fresh = not _was_dispatched(status)
    if fresh and (held := _by_dependencies(task, status, around.dependencies, now)) is not None:
        return held
    if around.payload_problem == "":
        return AdmissionDecision(AdmissionStep.HOLD, _free(status))
    if around.payload_problem is not None:
        return _blocked(status, "PayloadUnresolved", around.payload_problem)
    start = task.spec.start_after
    if fresh and start is not None and now < start:
        return AdmissionDecision(AdmissionStep.HOLD, lifecycle.scheduled(status, at=start), start)
    retry = status.next_attempt_time if status.history else None
    if retry is not None and now < retry:
        if status.phase is not Phase.RETRYING:
            status = lifecycle.waits_for_retry(status, around.policy)
        return AdmissionDecision(AdmissionStep.HOLD, status, retry)
    if now < around.hold_until:
        return AdmissionDecision(AdmissionStep.HOLD, status, around.hold_until)
    return AdmissionDecision(AdmissionStep.GO, _free(status))


def _without_queue(task: Task, status: TaskState) -> TaskState:
    return lifecycle.blocked(
        status,
        reason="QueueNotFound",
        message=f"spec.queue: there is no TaskQueue {task.namespace}/{task.spec.queue}: create it, "
        "and the Task goes on",
    )


def _by_dependencies(
    task: Task, status: TaskState, state: DependencyState, now: float
) -> AdmissionDecision | None:
    if state is INDEPENDENT:
        return None
    if state.cycle:
        return _refused(
            status,
            now,
            "Invalid",
            f"spec.dependsOn goes in a circle: {' -> '.join(state.cycle)}: create the Tasks anew "
            "without one of these",
        )
    if state.failed is not None:
        name, how = state.failed
        return _refused(
            status,
            now,
            "DependencyFailed",
            f"spec.dependsOn: Task {task.namespace}/{name} {how} and will never be Complete",
        )
    if state.missing:
        return _blocked(
            status,
            "DependencyNotFound",
            f"spec.dependsOn: there is no Task {_names(state.missing)} in namespace "
            f"{task.namespace}: create it, and this Task goes on",
        )
    if state.waiting:
        return _blocked(
            status,
            "WaitingForDependencies",
            f"spec.dependsOn: waits for Task {_names(state.waiting)} to be Complete",
        )
    return None


def _deadline(task: Task, status: TaskState, around: TaskEnvironment) -> tuple[float | None, int]:
    """Return when the Task must have ended, and after how many seconds that is."""
    seconds = task.spec.overrides.active_deadline_seconds
    if seconds is None and around.policy is not None:
        seconds = around.policy.active_deadline_seconds
    if seconds is None:
        return None, 0
    state = around.dependencies
    satisfied = state.completed
    if state.waiting or state.missing:
        if status.start_time is None:
            return None, seconds  # it may not run yet, or has and nobody knows since when
        satisfied = status.start_time  # they were Complete then, and are being looked up
    begun = (task.created, task.spec.start_after, status.resumed_time, satisfied)
    return max(at for at in begun if at is not None) + seconds, seconds


def _was_dispatched(status: TaskState) -> bool:
    """Tell whether an attempt was certainly dispatched before, whoever led then."""
    return (
        status.attempts > 0
        or bool(status.concurrency_key)
        or status.phase in (Phase.RUNNING, Phase.RETRYING)
    )


def _free(status: TaskState) -> TaskState:
    """Nothing keeps it; while a retry or a second try is under way its status still tells why."""
    if status.phase is Phase.SCHEDULED or (
        status.phase is Phase.BLOCKED and status.reason not in _TOLD_UNTIL_DISPATCHED
    ):
        return lifecycle.unblocked(status)
    return status


#: Reasons that stay while the Task is tried again or waits in line.
_TOLD_UNTIL_DISPATCHED = frozenset({"UnknownHandler", "ConcurrencyLimit"})


def _blocked(status: TaskState, reason: str, message: str) -> AdmissionDecision:
    return AdmissionDecision(
        AdmissionStep.HOLD, lifecycle.blocked(status, reason=reason, message=message)
    )


def _refused(status: TaskState, now: float, reason: str, message: str) -> AdmissionDecision:
    return AdmissionDecision(
        AdmissionStep.END, lifecycle.refused(status, now=now, reason=reason, message=message)
    )


def _names(names: tuple[str, ...]) -> str:
    told = ", ".join(names[:_NAMES_TOLD])
    more = len(names) - _NAMES_TOLD
    return f"{told} and {more} more" if more > 0 else told
