"""What follows when the API server refuses a Task's status for good. Pure, as the machine is.

* The status is written shorter, down to the least that another leader must know.
* If that is refused too, the object is read after a pause: it may be deleted, another one of the
  name, or finished by somebody else.
* If it is there and refuses again, nothing is held for it any longer: an Event says so, outcomes
  are acknowledged. The least is tried again after pauses that grow to an hour, because what refuses
  it, such as a policy, may change.
* If it is refused because another writer has raised attempts or epoch, the object is read as well,
  and the Task goes on from its numbers.
"""

from __future__ import annotations

from dataclasses import replace

from taskqueue.controller.tasks import effects, events
from taskqueue.controller.tasks.tracked_task import Refusal, TaskStage
from taskqueue.controller.tasks.transition import Draft
from taskqueue.model.task import StatusDetail

#: How long until the object is read; after each further refusal four times as long, to the longest.
FIRST_READ_SECONDS = 5.0
LONGEST_READ_SECONDS = 3600.0
_NOT_FOUND = 404


def on_status_rejected(draft: Draft, event: events.StatusRejected) -> None:
    """Write less of the status, or find out what became of the object."""
    tracked = draft.tracked
    if event.code == _NOT_FOUND or event.is_behind:  # or it was deleted, most likely
        _note_refusal(draft, tracked.detail[0], event)
        _read_later(draft)
        return
    if event.status is not tracked.status or event.detail is not tracked.detail[0]:
        if tracked.stage is not TaskStage.FINISHED:
            draft.change(tracked.status)
        return  # what is true now is written by itself
    fields = {"error": event.message, "detail": event.detail.name.lower()}
    shorter = event.detail.less
    if shorter is not None:
        draft.do(effects.Log("warning", "status.truncated", fields))
        _note_refusal(draft, shorter, event)
        draft.write(urgent=event.status.phase.terminal)
        return
    draft.do(effects.Log("error", "status.refused", fields))
    _note_refusal(draft, event.detail, event)
    _read_later(draft)


def on_read_due(draft: Draft) -> None:
    """Read the object, unless a status was written meanwhile."""
    refusal = draft.tracked.refusal
    if refusal is not None:
        behind, rejected = events.ReadPurpose.STATUS_BEHIND, events.ReadPurpose.STATUS_REJECTED
        draft.do(effects.ReadObject(behind if refusal.is_behind else rejected))


def on_still_there(draft: Draft, event: events.ObjectRead) -> None:
    """Try a refused status again: the object was read, and is there, unfinished."""
    refusal = draft.tracked.refusal
    if refusal is None or event.found is None:
        return  # a status was written meanwhile
    if event.purpose is events.ReadPurpose.STATUS_BEHIND:
        draft.take_over(event.found)
    else:
        draft.update(refusal=replace(refusal, reads=refusal.reads + 1))
        draft.write(urgent=True)


def _note_refusal(draft: Draft, detail: StatusDetail, event: events.StatusRejected) -> None:
    status = draft.tracked.status
    before = draft.tracked.refusal or Refusal(status, detail)
    draft.update(
        refusal=replace(
            before, status=status, detail=detail, why=event.message, is_behind=event.is_behind
        )
    )


def _read_later(draft: Draft) -> None:
    refusal = draft.tracked.refusal
    assert refusal is not None  # noqa: S101
    if refusal.reads and not refusal.is_behind:
        _let_go(draft, refusal)
    seconds = min(FIRST_READ_SECONDS * 4.0 ** min(refusal.reads, 10), LONGEST_READ_SECONDS)
    seconds *= 1.0 - 0.25 * draft.environment.random  # those refused together come apart
    draft.do(effects.SetTimer(events.Timer.READ, seconds))


def _let_go(draft: Draft, refusal: Refusal) -> None:
    """Hold no outcome for what cannot be recorded: its message would never be acknowledged."""
    if not refusal.is_reported:
        draft.update(refusal=replace(refusal, is_reported=True))
        draft.do(effects.ReportRefusal(refusal.why))
    if draft.tracked.receipts:
        draft.do(effects.Acknowledge(draft.tracked.receipts, dropped="unrecorded"))
        draft.update(receipts=(), checkpoint_receipt=None)
