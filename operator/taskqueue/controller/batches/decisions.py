"""What is to be done with a batch by what is true of it now. Pure.

The first that applies, in this order: all items have ended; cancelled; too many failed; over its
deadline; items that cannot be used; suspended; without its TaskQueue; without its items; its items
wait for something. A later leader decides the same: all of it is in the object and its record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from taskqueue.controller.batches.progress import BatchProgress
from taskqueue.model.batch import Batch, BatchState
from taskqueue.model.task import Phase

_QUEUE_NOT_FOUND, ITEMS_NOT_FOUND = "QueueNotFound", "ItemsNotFound"


@dataclass(frozen=True, slots=True)
class Problem:
    """What keeps a batch from going on, or for good: a reason and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known around a batch.

    Attributes:
        now: seconds since the epoch.
        has_queue: its TaskQueue exists.
        invalid: why its items can never be used; None: they may be.
        unresolved: why they are not known yet; None: they are, or nobody has looked.
        held: what all its items wait for that have begun; None: some run, or may.
    """

    now: float
    has_queue: bool = True
    invalid: Problem | None = None
    unresolved: Problem | None = None
    held: Problem | None = None


def decide(
    batch: Batch, state: BatchState, progress: BatchProgress | None, situation: Situation
) -> BatchState:
    """Return the state of a batch, apart from its record.

    Args:
        batch: as last seen.
        state: before.
        progress: of its items; None: they are not known.
        situation: what is known around it.

    Returns:
        The state after. In a final phase its items are to be stopped, in phase Suspended they are
        to be recalled.
    """
    now = situation.now
    if state.phase.terminal:
        return state
    ended = _ended(batch, state, progress, situation)
    if ended is not None:
        phase, problem = ended
        return replace(
            state,
            phase=phase,
            reason=problem.reason,
            message=problem.message,
            completion_time=now,
            active=0,
        )
    if batch.suspend:
        return replace(
            state,
            phase=Phase.SUSPENDED,
            reason="Suspended",
            message="spec.suspend is true",
            resumed_time=None,
        )
    if state.phase is Phase.SUSPENDED:
        state = replace(state, resumed_time=now)
    blocked = _blocked(batch, situation)
    if blocked is not None:
        return replace(state, phase=Phase.BLOCKED, reason=blocked.reason, message=blocked.message)
    begun = progress is not None and progress.begun > 0
    if begun and state.start_time is None:
        state = replace(state, start_time=now)
    return replace(state, phase=Phase.RUNNING if begun else Phase.PENDING, reason="", message="")


def may_begin(state: BatchState) -> bool:
    """Return whether items may begin."""
    return state.phase in (Phase.PENDING, Phase.RUNNING) or (
        state.phase is Phase.BLOCKED and state.reason not in _NOTHING_BEGINS
    )


def deadline(batch: Batch, state: BatchState) -> float | None:
    """Return when a batch must have ended; None: at no time."""
    if batch.active_deadline_seconds is None:
        return None
    return max(batch.created, state.resumed_time or 0.0) + batch.active_deadline_seconds


_NOTHING_BEGINS = (_QUEUE_NOT_FOUND, ITEMS_NOT_FOUND)


def _ended(
    batch: Batch, state: BatchState, progress: BatchProgress | None, situation: Situation
) -> tuple[Phase, Problem] | None:
    failures = 0 if progress is None else progress.failures
    tolerated = batch.max_failed
    if progress is not None and progress.is_done and situation.invalid is None:
        if failures <= (tolerated or 0):
            return Phase.SUCCEEDED, Problem("", "")
        if tolerated is None:
            return Phase.FAILED, Problem(
                "ItemsFailed", f"{failures} of {progress.total} items failed: see status.errors"
            )
    if batch.cancel:
        return Phase.CANCELLED, Problem("Cancelled", "spec.cancel is true")
    if tolerated is not None and failures > tolerated:
        return Phase.FAILED, Problem(
            "TooManyFailures",
            f"{failures} items failed, spec.maxFailedItems is {tolerated}: see status.errors",
        )
    at = deadline(batch, state)
    if at is not None and not batch.suspend and situation.now >= at:
        return Phase.FAILED, Problem(
            "DeadlineExceeded",
            f"it did not end within activeDeadlineSeconds, {batch.active_deadline_seconds} s",
        )
    if situation.invalid is not None:
        return Phase.FAILED, situation.invalid
    return None


def _blocked(batch: Batch, situation: Situation) -> Problem | None:
    if not situation.has_queue:
        return Problem(
            _QUEUE_NOT_FOUND,
            f"spec.queue: there is no TaskQueue {batch.namespace}/{batch.queue}: create it, and "
            "the TaskBatch continues",
        )
    if situation.unresolved is not None:
        return situation.unresolved
    return situation.held
