"""What becomes of an attempt whose worker may be lost. Pure, as the machine is.

The broker delivers a message again when it has lost the connection by which a worker had it. That
worker may be dead, or be back in a moment and run the attempt all the while: the broker cannot
tell, and neither can the worker that gets the message next. So that one gives it back, and it is
decided here:

* While a worker is known to run the attempt, its message is not published again, and nothing is
  counted: the worker has the attempt without a message, and its outcome counts as ever.
* That worker is lost when it has not been heard of for `WORKER_LOST_SECONDS`, when it does not name
  the attempt in a heartbeat any more, or when it gives the message back itself. Then the delivery
  counts, and the attempt is published again, or has failed if that was the last one.
* When the operator's own connection comes back, every worker has the whole time again.
* An attempt that no worker is known to run is published again at once, and counted.

With a concurrency key all of this is left out: a worker that is cut off has stopped the attempt.
"""

from __future__ import annotations

from taskqueue.controller.tasks import effects, events, lifecycle
from taskqueue.controller.tasks.lifecycle import AttemptEnd
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.controller.tasks.transition import Draft
from taskqueue.limits import LONGEST_ATTEMPT_SECONDS, REPORT_GRACE_SECONDS
from taskqueue.model.task import TaskState

#: How long the outcome of an attempt may be under way that its worker does not name any more.
MISSED_SECONDS = 5.0
#: A timer may fire so much too early.
_EARLY_SECONDS = 0.001


def on_released(draft: Draft, event: events.AttemptReleased) -> None:
    """Publish the attempt again, unless a worker runs it; its token stays good.

    Not so with a concurrency key: this report may come twice, and the second must not have the
    Task run beside itself. It is claimed again, so that its fencing number grows.
    """
    draft.count_on(event)
    if event.deliveries and _is_run_elsewhere(draft, event.worker):
        draft.do(effects.Acknowledge((event.about.receipt,)))
        _await_worker(draft, event.deliveries)
        return
    if _is_last(draft, event.deliveries):
        draft.update(receipts=(*draft.tracked.receipts, event.about.receipt))
    else:
        draft.acknowledge_unfinished(event.about.receipt)
    _publish_again(draft, event.deliveries)


def on_missed(draft: Draft, event: events.AttemptMissed) -> None:
    """Give the outcome of an attempt a moment to arrive, and its worker up then."""
    tracked = draft.tracked
    at = draft.environment.monotonic + MISSED_SECONDS
    if tracked.returned and tracked.status.worker == event.worker and at < (tracked.lost_at or at):
        draft.update(lost_at=at)
        draft.do(effects.SetTimer(events.Timer.LOST, MISSED_SECONDS))


def on_reports_resumed(draft: Draft, event: events.ReportsResumed) -> None:
    """Give a worker the whole time again: its silence said nothing of it."""
    if draft.tracked.lost_at is not None:
        draft.keep_alive()


def on_lost_due(draft: Draft) -> None:
    """Publish the attempt again if its worker was not heard of in time."""
    tracked = draft.tracked
    if not tracked.returned:
        return
    left = (tracked.lost_at or 0.0) - draft.environment.monotonic
    if left > _EARLY_SECONDS:
        draft.do(effects.SetTimer(events.Timer.LOST, left))
        return
    draft.do(effects.Log("warning", "attempt.lost", {"worker": tracked.status.worker}))
    _publish_again(draft, tracked.returned)


def may_run_on(draft: Draft, seconds: float) -> bool:
    """Return whether a worker may run the attempt for longer than is known here.

    Whoever published it may have given it more time, and its worker still says that it runs it.
    """
    elsewhere = draft.tracked.published_elsewhere
    return elsewhere and _is_alive(draft) and seconds < LONGEST_ATTEMPT_SECONDS


def unreported_status(draft: Draft, late: events.AttemptUnreported) -> TaskState:
    """Return the status after an attempt whose time is up; it says how long that was."""
    tracked, environment = draft.tracked, draft.environment
    limit = tracked.attempt_seconds(draft.policy)
    waited = int(late.seconds - REPORT_GRACE_SECONDS)
    return lifecycle.unreported(
        tracked.status,
        now=environment.now,
        start=environment.now - late.seconds,
        seconds=max(limit, waited) if tracked.published_elsewhere else limit,
        policy=draft.policy,
        random=environment.random,
    )


def _is_alive(draft: Draft) -> bool:
    lost_at = draft.tracked.lost_at
    return lost_at is not None and draft.environment.monotonic < lost_at


def _is_run_elsewhere(draft: Draft, worker: str) -> bool:
    """Return whether another worker than this one runs the published attempt, as far as known."""
    tracked = draft.tracked
    if tracked.stage is not TaskStage.PUBLISHED or tracked.key or not _is_alive(draft):
        return False
    return tracked.is_running and tracked.status.worker != worker


def _is_last(draft: Draft, deliveries: int) -> bool:
    """Return whether the attempt has failed when these deliveries of it are lost."""
    return bool(deliveries) and (
        draft.tracked.deliveries + deliveries >= draft.policy.max_deliveries
    )


def _await_worker(draft: Draft, deliveries: int) -> None:
    tracked = draft.tracked
    draft.update(returned=max(tracked.returned, deliveries))  # the report may come twice
    draft.do(
        effects.AwaitWorker(tracked.status.worker),
        effects.SetTimer(events.Timer.LOST, (tracked.lost_at or 0.0) - draft.environment.monotonic),
    )


def _publish_again(draft: Draft, deliveries: int) -> None:
    """Publish an attempt that no worker runs; ``deliveries`` of it were lost.

    They are counted here, or a Task that kills its workers would do so forever.
    """
    status, now = draft.tracked.status, draft.environment.now
    if _is_last(draft, deliveries):
        end = AttemptEnd(attempt=status.current_attempt, epoch=status.epoch, now=now)
        draft.fail(end, lifecycle.LOST_TOO_OFTEN)
        return
    draft.update(deliveries=draft.tracked.deliveries + deliveries)
    draft.change((lifecycle.recalled if draft.tracked.key else lifecycle.released)(status))
    draft.enqueue()
    draft.reconcile()
