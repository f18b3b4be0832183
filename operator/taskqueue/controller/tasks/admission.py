"""Decides whether a Task may be dispatched, must be held, or ends without a worker.

`decide` is called whenever anything about a Task may have changed. It depends on the present state
alone, so a new leader decides as the former one did. A dispatched Task reacts only to a cancel, a
suspend and its deadline; the other conditions matter before.

The first that applies, in this order: cancelled; suspended; over its deadline; without its
TaskQueue; dependencies; payload; startAfter; the wait before the next attempt; the last passing
obstacle.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.dependency_graph import INDEPENDENT, DependencyState
from taskqueue.controller.tasks.tracked_task import Anchors, Dispatched, TaskEnvironment
from taskqueue.model.task import Phase, Task, TaskState

#: A Task's reason while as many others wait for their turn as may.
QUEUE_FULL = "QueueFull"
#: Less than this is no time: what floats and timers lose.
_INSTANT_SECONDS = 1e-6
#: Names shown in a message; the others are counted.
_NAMES_SHOWN = 5
#: Names of a cycle shown, that of the first Task at its end included.
_CIRCLE_SHOWN = 12


class AdmissionStep(Enum):
    """What to do with a Task."""

    #: It has its final status.
    END = auto()
    #: It must not be dispatched, and is recalled if it is.
    HOLD = auto()
    #: It may be dispatched, or stay so.
    GO = auto()


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """A step, its status, and when time alone may change the decision.

    ``reconsider_at`` and the Task's ``deadline`` are in seconds since the epoch, or None.
    """

    step: AdmissionStep
    status: TaskState
    reconsider_at: float | None = None
    deadline: float | None = None


def decide(
    task: Task,
    status: TaskState,
    environment: TaskEnvironment,
    *,
    dispatched: Dispatched,
    hold_until: float = 0.0,
    anchors: Anchors = (),
) -> AdmissionDecision:
    """Return what to do with a Task.

    Args:
        task: as last seen.
        status: what is true of it, not terminal.
        environment: see `TaskEnvironment`.
        dispatched: whether an attempt of it is in the broker or with a worker.
        hold_until: it is held until then for a passing obstacle, such as an unknown handler.
        anchors: the times that were converted before; see `seconds_until`.
    """
    now = environment.now
    spec = task.spec
    if spec.cancel:
        return AdmissionDecision(AdmissionStep.END, lifecycle.cancelled(status, now=now))
    if spec.suspend:
        out = dispatched is not Dispatched.NO and status.phase is not Phase.SUSPENDED
        held = lifecycle.recalled(status) if out else status
        return AdmissionDecision(AdmissionStep.HOLD, lifecycle.suspended(held))
    if status.phase is Phase.SUSPENDED:
        status = lifecycle.resumed(status, now=now)
    deadline, seconds = _deadline(task, status, environment)
    if deadline is not None and not seconds_until(deadline, environment, anchors):
        over = lifecycle.deadline_exceeded(status, now=now, seconds=seconds)
        return AdmissionDecision(AdmissionStep.END, over)
    if dispatched is Dispatched.YES:
        if environment.policy is None and status.phase is not Phase.RUNNING:
            status = _without_queue(task, status)
        else:
            status = _free(status)
        return AdmissionDecision(AdmissionStep.GO, status, deadline, deadline)
    decision = _before_dispatch(task, status, environment, hold_until, anchors)
    if deadline is None or decision.step is AdmissionStep.END:
        return decision
    first = min(
        (at for at in (deadline, decision.reconsider_at) if at is not None),
        key=lambda at: seconds_until(at, environment, anchors),
    )
    return AdmissionDecision(decision.step, decision.status, first, deadline)


def seconds_until(at: float, environment: TaskEnvironment, anchors: Anchors) -> float:
    """Return how long until a time comes; 0.0: it has come.

    Args:
        at: seconds since the epoch.
        environment: has the time by both clocks.
        anchors: a time among these comes by the monotonic clock; another one by the wall clock.
    """
    for wall, monotonic in anchors:
        if wall == at:
            left = monotonic - environment.monotonic
            break
    else:
        left = at - environment.now
    return left if left > _INSTANT_SECONDS else 0.0


def _before_dispatch(
    task: Task,
    status: TaskState,
    environment: TaskEnvironment,
    hold_until: float,
    anchors: Anchors,
) -> AdmissionDecision:
    now = environment.now
    if environment.policy is None:
        return AdmissionDecision(AdmissionStep.HOLD, _without_queue(task, status))
    fresh = not _was_dispatched(status)
    if (
        fresh
        and (held := _by_dependencies(task, status, environment.dependencies, now)) is not None
    ):
        return held
    if environment.payload_error is not None:
        return _blocked(status, "PayloadUnresolved", environment.payload_error)
    start = task.spec.start_after
    if fresh and start is not None and seconds_until(start, environment, anchors):
        return AdmissionDecision(AdmissionStep.HOLD, lifecycle.scheduled(status, at=start), start)
    due = status.next_attempt_time if status.attempts else None
    if due is not None and seconds_until(due, environment, anchors):
        waits = lifecycle.waits_for_attempt(status, environment.policy)
        return AdmissionDecision(AdmissionStep.HOLD, waits, due)
    if hold_until and seconds_until(hold_until, environment, anchors):
        return AdmissionDecision(AdmissionStep.HOLD, status, hold_until)
    return AdmissionDecision(AdmissionStep.GO, _free(status))


def _without_queue(task: Task, status: TaskState) -> TaskState:
    return lifecycle.blocked(
        status,
        reason="QueueNotFound",
        message=f"spec.queue: there is no TaskQueue {task.namespace}/{task.spec.queue}: create it, "
        "and the Task continues",
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
            f"{_field(task, ())} is circular: {_circle(state.cycle)}: create the Tasks again "
            "without one of these",
        )
    if state.failed is not None:
        name, how = state.failed
        where = f"{_field(task, (name,))}: Task {task.namespace}/{name}"
        message = f"{where} {how} and will never be Complete"
        return _refused(status, now, "DependencyFailed", message)
    if state.unmet is not None:
        name, how = state.unmet
        message = (
            f"spec.dependencies: Task {task.namespace}/{name} {how}, and this one runs only when "
            f"it has {dict(task.spec.whens)[name].value}"
        )
        skipped = lifecycle.cancelled(status, now=now, reason="Skipped", message=message)
        return AdmissionDecision(AdmissionStep.END, skipped)
    if state.missing:
        return _blocked(
            status,
            "DependencyNotFound",
            f"{_field(task, state.missing)}: there is no Task {_names(state.missing)} in namespace "
            f"{task.namespace}: create it, and this Task continues",
        )
    if state.waiting:
        return _blocked(
            status,
            "WaitingForDependencies",
            f"{_field(task, state.waiting)}: waits for Task {_names(state.waiting)} to "
            f"{'end' if task.spec.whens else 'be Complete'}",
        )
    return None


def _field(task: Task, names: tuple[str, ...]) -> str:
    """Return the field that has these names; without any, where dependencies are."""
    own = dict(task.spec.whens)
    return "spec.dependencies" if own and own.keys() >= set(names) else "spec.dependsOn"


def _deadline(
    task: Task, status: TaskState, environment: TaskEnvironment
) -> tuple[float | None, int]:
    """Return when the Task must have ended, and after how many seconds that is.

    An item has no deadline: its TaskBatch has, and a TaskQueue's default is for Tasks.
    """
    if task.index is not None:
        return None, 0
    seconds = task.spec.overrides.active_deadline_seconds
    if seconds is None and environment.policy is not None:
        seconds = environment.policy.active_deadline_seconds
    if seconds is None:
        return None, 0
    state = environment.dependencies
    satisfied = state.completed
    if state.waiting or state.missing:
        if status.start_time is None:
            return None, seconds  # it may not run yet, or has run at an unknown time
        satisfied = status.start_time  # they were Complete then, and are being read
    begun = (task.created, task.spec.start_after, status.resumed_time, satisfied)
    return max(at for at in begun if at is not None) + seconds, seconds


def _was_dispatched(status: TaskState) -> bool:
    """Return whether an attempt was certainly dispatched before, by any leader."""
    return (
        status.attempts > 0
        or bool(status.concurrency_key)
        or status.phase in (Phase.RUNNING, Phase.RETRYING)
    )


def _free(status: TaskState) -> TaskState:
    """Unblock it; while it is tried again, its status keeps the reason."""
    if status.phase is Phase.SCHEDULED or (
        status.phase is Phase.BLOCKED and status.reason not in _KEPT_UNTIL_DISPATCHED
    ):
        return lifecycle.unblocked(status)
    return status


#: Reasons that stay while the Task is tried again or waits for its key.
_KEPT_UNTIL_DISPATCHED = frozenset({"UnknownHandler", "ConcurrencyLimit", QUEUE_FULL})


def _blocked(status: TaskState, reason: str, message: str) -> AdmissionDecision:
    return AdmissionDecision(
        AdmissionStep.HOLD, lifecycle.blocked(status, reason=reason, message=message)
    )


def _refused(status: TaskState, now: float, reason: str, message: str) -> AdmissionDecision:
    return AdmissionDecision(
        AdmissionStep.END, lifecycle.refused(status, now=now, reason=reason, message=message)
    )


def _circle(names: tuple[str, ...]) -> str:
    """Describe a cycle, which may be as long as there are Tasks: each of them says so."""
    if len(names) <= _CIRCLE_SHOWN:
        return " -> ".join(names)
    left_out = f"({len(names) - _CIRCLE_SHOWN} more)"
    return " -> ".join((*names[: _CIRCLE_SHOWN - 1], left_out, names[-1]))


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
