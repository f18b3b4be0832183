"""What a result store does, whatever it is made of.

A store has whole results or none: whoever is killed while it writes leaves what was there before.
An attempt may run twice, and its results may differ. So the first that is written under a key
stays, and whoever comes later gets that: both report the same, and it is what readers find.
All of them pass the same tests (``tests/integration/results``), each against its real server.
"""

from __future__ import annotations

from typing import Protocol

from taskqueue.results.reference import StoredResult


class StoreError(Exception):
    """A store did not do what it was asked.

    Attributes:
        transient: the same call may succeed soon: the store is away, full or overloaded. Otherwise
            somebody has to do what the message says first.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class ResultStore(Protocol):
    """Keeps results by key; every method may be called any number of times at once.

    No call takes longer than the time-out the store was opened with, and none tries again: that is
    for `taskqueue.results.patience`. All raise `StoreError`.
    """

    async def put(self, key: str, result: StoredResult) -> StoredResult:
        """Write a result unless there is one of the same key; return the one that is there."""

    async def get(self, key: str) -> StoredResult | None:
        """Return a result; None: there is none, or it has expired."""

    async def delete_before(self, prefix: str, moment: float) -> int:
        """Delete what was written before a moment under keys that begin with ``prefix``.

        It does so in portions: after an error some are deleted, and each portion has its time-out.

        Args:
            prefix: of `taskqueue.model.result.queue_prefix`.
            moment: in seconds since the epoch.

        Returns:
            how many were deleted; 0 where the store does so by itself.
        """

    async def close(self) -> None:
        """Close the connections; calls under way fail."""


async def existing(store: ResultStore, key: str) -> StoredResult:
    """Return the result that another one could not be written beside.

    Raises:
        StoreError: as `ResultStore.get`, and when it has just been deleted.
    """
    found = await store.get(key)
    if found is None:
        raise StoreError(f"{key} was deleted while it was written", transient=True)
    return found
