"""Which of the Tasks of one concurrency key end, where they do not simply wait for each other.

`losers` looks at all unfinished Tasks of a key as they are now, so that another operator decides
the same. It is asked when one of them is dispatched, waits or is held.

* KeepNewest: of those that wait, all end before which there is a newer one that waits or is
  dispatched. When the newer one is dispatched, older ones that are held for anything else (a retry,
  a suspension, their time) end too: none is ever dispatched after it.
* CancelRunning: the same, and older ones that are dispatched end when a newer one waits.
* Reject: one that waits ends if another is dispatched or has begun, or is older and waits, too.

A held Task that has not begun is no reason for another to end: it may be held for long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.flow import OnConflict
from taskqueue.model.task import PENDING

#: When a Task was created, in seconds, and its first resourceVersion: that of one which another
#: operator wrote is not known, so it is taken for the oldest of its second.
Order = tuple[float, int]


class Standing(Enum):
    """Where a Task is, as far as a conflict goes."""

    #: Not to be dispatched for now.
    HELD = auto()
    #: The same, and an attempt of it was begun.
    BEGUN = auto()
    WAITING = auto()
    DISPATCHED = auto()


@dataclass(frozen=True, slots=True)
class Contender:
    """An unfinished Task of a key."""

    uid: str
    order: Order
    standing: Standing


def order_of(tracked: TrackedTask) -> Order:
    """Return the place of a Task among those of its key, when it is first seen."""
    is_new = tracked.written is PENDING and not tracked.status.concurrency_key
    return (tracked.task.created, tracked.fence if is_new else 0)


def standing_of(tracked: TrackedTask) -> Standing:
    """Return where a Task is."""
    if tracked.stage is TaskStage.WAITING:
        return Standing.WAITING
    if tracked.stage in (TaskStage.CLAIMING, TaskStage.PUBLISHED):
        return Standing.DISPATCHED
    return Standing.BEGUN if tracked.status.attempts else Standing.HELD


def may_outdo(policy: OnConflict, standing: Standing) -> bool:
    """Return whether others may end because of a Task that stands so."""
    if standing is Standing.BEGUN:
        return policy is OnConflict.REJECT
    return standing is not Standing.HELD


def losers(
    policy: OnConflict, contenders: Collection[Contender]
) -> Sequence[tuple[Contender, Contender]]:
    """Return the Tasks that end, each with the one that it ends for.

    Args:
        policy: what becomes of conflicts.
        contenders: all unfinished Tasks of one key.
    """
    if policy is OnConflict.QUEUE:
        return ()
    by_age = sorted(contenders, key=lambda one: one.order)
    waiting = [one for one in by_age if one.standing is Standing.WAITING]
    dispatched = [one for one in by_age if one.standing is Standing.DISPATCHED]
    if policy is OnConflict.REJECT:
        begun = [one for one in by_age if one.standing is Standing.BEGUN]
        stays = next(iter((*dispatched, *begun, *waiting)), None)
        return [(one, stays) for one in waiting if stays is not None and one is not stays]
    ended = {Standing.WAITING}
    if policy is OnConflict.CANCEL_RUNNING:
        ended.add(Standing.DISPATCHED)
    return [
        *_older(by_age, ended, than=[*waiting, *dispatched]),
        *_older(by_age, {Standing.HELD, Standing.BEGUN}, than=dispatched),
    ]


def _older(
    by_age: Sequence[Contender], standings: set[Standing], *, than: Collection[Contender]
) -> Sequence[tuple[Contender, Contender]]:
    newest = max(than, key=lambda one: one.order, default=None)
    return [
        (one, newest)
        for one in by_age
        if newest is not None and one.standing in standings and one.order < newest.order
    ]
