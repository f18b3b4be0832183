"""Writes what is true of batches to the API server: at most once a second for each.

A flush has the record of all items that have ended. When it is written, these items learn of it,
and acknowledge their outcomes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from taskqueue.controller.batches.tracked_batch import TrackedBatch
from taskqueue.controller.tasks import events
from taskqueue.controller.tasks.effects import WriteStatus
from taskqueue.kubernetes.batch_codec import batch_path, status_patch
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteRefused, WriteResult
from taskqueue.model.batch import BatchState
from taskqueue.timestamps import Clock

#: From one flush of a batch to the next, in seconds.
FLUSH_SECONDS = 1.0
#: With so many ends a batch is flushed earlier: the inbox holds few more unacknowledged messages.
_EARLY_FLUSH = 1_500
#: Statuses handed back in one turn of the loop.
_STATUSES_A_TURN = 250

Pending = list[tuple[str, WriteStatus]]


class BatchRecorder:
    """Flushes batches, and lets their items know.

    Args:
        updater: writes statuses.
        clock: wall time in seconds.
        send: sends an event to an item.
        going: returns how many items of a batch are on their way or with a worker.
        on_refused: called with a batch whose status the API server refuses, and its words.
        on_ended: called with a batch whose final status is written.
    """

    def __init__(
        self,
        updater: StatusUpdater,
        *,
        clock: Clock,
        send: Callable[[str, events.Event], None],
        going: Callable[[TrackedBatch], int],
        on_refused: Callable[[TrackedBatch, str], None],
        on_ended: Callable[[TrackedBatch], None],
    ) -> None:
        self._updater = updater
        self._clock = clock
        self._send = send
        self._going = going
        self._on_refused = on_refused
        self._on_ended = on_ended

    def flush_if_due(self, tracked: TrackedBatch) -> None:
        """Flush a batch that has something to say, and has said nothing for a second.

        An end, and what commands wait for, is said at once.
        """
        is_new = _shown(tracked.state) != _shown(tracked.sent)
        if not is_new and not tracked.pending:
            return
        since = asyncio.get_running_loop().time() - tracked.flushed_at
        is_early = len(tracked.pending) >= _EARLY_FLUSH
        if since >= FLUSH_SECONDS or is_early or tracked.is_urgent or tracked.state.phase.terminal:
            self.flush(tracked)

    def flush(self, tracked: TrackedBatch) -> None:
        """Put what is true on its way to the API server."""
        progress, batch, state = tracked.progress, tracked.batch, tracked.state
        state = replace(
            state,
            record=state.record if progress is None else progress.record(),
            active=0 if state.phase.terminal else self._going(tracked),
            observed_generation=batch.generation,
        )
        pending, tracked.pending = tracked.pending, []
        tracked.state = tracked.sent = state
        tracked.is_urgent = False
        tracked.flushed_at = asyncio.get_running_loop().time()

        def on_result(result: WriteResult) -> None:
            self._on_flushed(tracked, state, pending, result)

        path = f"{batch_path(batch.namespace, batch.name)}/status"
        patch = status_patch(batch, state, now=self._clock())
        self._updater.put(path, patch, on_result, urgent=state.phase.terminal)

    def settle(self, tracked: TrackedBatch, pending: Pending) -> None:
        """Tell items that their statuses are on record, so many in each turn of the loop."""
        now, later = pending[:_STATUSES_A_TURN], pending[_STATUSES_A_TURN:]
        for uid, effect in now:
            self._send(uid, written(effect))
        tracked.unrecorded -= len(now)
        if later:
            asyncio.get_running_loop().call_soon(self.settle, tracked, later)

    def _on_flushed(
        self, tracked: TrackedBatch, state: BatchState, pending: Pending, result: WriteResult
    ) -> None:
        self.settle(tracked, pending)
        if tracked.is_discarded:
            return
        if isinstance(result, WriteRefused):
            self._on_refused(tracked, result.message)
        elif state.phase.terminal:
            if result.generation > tracked.batch.generation:
                # kubectl wait believes a final status only if it names the last generation.
                tracked.batch = replace(tracked.batch, generation=result.generation)
                self.flush(tracked)
            else:
                self._on_ended(tracked)


def written(effect: WriteStatus) -> events.StatusWritten:
    """Return the event that a status of an item is on record."""
    return events.StatusWritten(effect.status, effect.receipts, 0, 0, {})


def _shown(state: BatchState) -> tuple[object, ...]:
    """Return what is worth a write of its own, beside what becomes of items."""
    return (state.phase, state.reason, state.message, state.digest, state.start_time is None)
