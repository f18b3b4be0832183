"""Which items of a batch have not begun, have begun, and have ended, and how. Pure.

Items begin in the order of their indexes. So what has ended is described by how many have begun,
and by those of them that have not ended (the open ones): with a bound on these the record of
100,000 items is short, whatever the order in which they end.

A restart goes on from the last record that was written: what has ended since then is open in it,
and begins once more, nothing else does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from taskqueue.controller.batches import index_set
from taskqueue.controller.batches.index_set import IndexSet
from taskqueue.model.batch import BatchRecord, ItemErrors

#: Groups of errors that are kept apart; further types are counted together.
ERROR_GROUPS = 10
OTHER_ERRORS = "Other"
_INDEXES_SHOWN = 3
_MESSAGE_LENGTH = 200
_TYPE_LENGTH = 64
#: Characters of the failed indexes in a record, encoded, and as ranges for people.
FAILED_LENGTH = 2_400
_RANGES_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemEnd:
    """How an item ended.

    Attributes:
        succeeded: whether it did; else it failed.
        attempts: that it had.
        error: type of the error it failed with.
        message: of that error.
    """

    succeeded: bool
    attempts: int = 1
    error: str = ""
    message: str = ""


@dataclass(slots=True)
class BatchProgress:
    """The items of a batch of ``total``.

    Attributes:
        total: of items.
        begun: items below this index have begun.
        running: of these, those that are tracked now and have not ended.
        succeeded: how many did.
        retried: attempts beyond the first, of all items that have ended.
        epoch: the highest on record of any item; see `taskqueue.model.token`.
        failed: the items that failed, as far as known.
        failures: how many failed.
    """

    total: int
    begun: int = 0
    running: set[int] = field(default_factory=set)
    succeeded: int = 0
    retried: int = 0
    epoch: int = 0
    failures: int = 0
    failed: IndexSet = field(init=False)
    _errors: dict[str, ItemErrors] = field(default_factory=dict)
    #: Open items that are not tracked; in the heap are also some that are by now.
    _returned: set[int] = field(default_factory=set)
    _heap: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.failed = IndexSet(self.total)

    @classmethod
    def restore(cls, record: BatchRecord) -> BatchProgress:
        """Go on from a record.

        Raises:
            ValueError: the record contradicts itself.
        """
        progress = cls(
            record.total,
            begun=record.begun,
            succeeded=record.succeeded,
            retried=record.retried,
            epoch=record.epoch,
            failures=record.failures,
        )
        returned = list(index_set.decode(record.open, record.begun))
        if record.begun > record.total or record.ended != record.begun - len(returned):
            raise ValueError(
                f"{record.begun} of {record.total} items have begun and {len(returned)} have not "
                f"ended, but {record.ended} are said to have ended"
            )
        progress._returned, progress._heap = set(returned), returned
        if record.failed is not None:
            progress.failed = index_set.decode(record.failed, record.total)
        progress._errors = {one.type: one for one in record.errors}
        return progress

    @property
    def ended(self) -> int:
        """Items that have succeeded or failed."""
        return self.succeeded + self.failures

    @property
    def is_done(self) -> bool:
        """Whether all items have ended."""
        return self.ended == self.total

    @property
    def unbegun(self) -> int:
        """Items that are yet to begin, or to begin once more."""
        return self.total - self.begun + len(self._returned)

    def is_unended(self, index: int) -> bool:
        """Return whether there is such an item, and its end is not known."""
        return self.begun <= index < self.total or index in self.running or index in self._returned

    def begin_next(self) -> int | None:
        """Begin the first item that is not running; None: there is none."""
        while self._heap:
            index = heapq.heappop(self._heap)
            if index in self._returned:
                self._returned.discard(index)
                self.running.add(index)
                return index
        if self.begun == self.total:
            return None
        self.begun += 1
        self.running.add(self.begun - 1)
        return self.begun - 1

    def begin(self, index: int) -> bool:
        """Begin this item out of turn; return whether it is to be tracked from now on.

        A former leader had published it. What comes before it was begun by that leader, too.
        """
        if index in self.running or not self.is_unended(index):
            return False
        while self.begun <= index:
            self._return(self.begun)
            self.begun += 1
        self._returned.discard(index)
        self.running.add(index)
        return True

    def give_back(self, index: int) -> None:
        """An item is tracked no more, and has not ended: it begins again in its turn."""
        if index in self.running:
            self.running.discard(index)
            self._return(index)

    def end(self, index: int, end: ItemEnd) -> None:
        """Record the end of an item that runs; another has no effect."""
        if index not in self.running:
            return
        self.running.discard(index)
        self.retried += max(end.attempts - 1, 0)
        if end.succeeded:
            self.succeeded += 1
            return
        self.failures += 1
        self.failed.add(index)
        self._count_error(index, end)

    def record(self) -> BatchRecord:
        """Return what a later leader needs to know, and people like to."""
        failed: str | None = self.failed.encode()
        if failed is not None and len(failed) > FAILED_LENGTH:
            failed = None
        ranges, cut = index_set.as_ranges(self.failed, longest=_RANGES_LENGTH)
        return BatchRecord(
            total=self.total,
            begun=self.begun,
            open=index_set.encode(sorted(self.running | self._returned)),
            succeeded=self.succeeded,
            failures=self.failures,
            retried=self.retried,
            epoch=self.epoch,
            failed=failed,
            failed_ranges=ranges,
            failed_ranges_cut=cut or self.failed.count < self.failures,
            errors=tuple(self._errors.values()),
        )

    def open_items(self) -> Iterator[int]:
        """Yield the items that have begun and not ended."""
        yield from self.running
        yield from self._returned

    def _return(self, index: int) -> None:
        self._returned.add(index)
        heapq.heappush(self._heap, index)

    def _count_error(self, index: int, end: ItemEnd) -> None:
        kind = end.error[:_TYPE_LENGTH] or "Error"
        full = len(self._errors) >= ERROR_GROUPS - (OTHER_ERRORS not in self._errors)
        if kind not in self._errors and full:
            kind = OTHER_ERRORS
        before = self._errors.get(kind)
        if before is None:
            before = ItemErrors(kind, 0, (), _clip(end.message))
        shown = tuple(sorted((*before.indexes, index))[:_INDEXES_SHOWN])
        self._errors[kind] = ItemErrors(kind, before.count + 1, shown, before.message)


def _clip(message: str) -> str:
    return message[: _MESSAGE_LENGTH - 1] + "…" if len(message) > _MESSAGE_LENGTH else message
