"""Publishes the checkpoints of running attempts: of each the latest, and one at a time.

A handler may save a thousand times a second. While one checkpoint is not confirmed, the next waits,
and the one after replaces it: so neither outbox nor broker fills with them, and they arrive in
order. Before the end of an attempt is published, what waits is published too.
"""

from __future__ import annotations

from functools import partial

from taskqueue.contract.outcome import EventKind
from taskqueue.contract.outgoing import outcome_message
from taskqueue.contract.work import WorkMessage
from taskqueue.exact_json import decode_own
from taskqueue.worker.attempt_events import event_of
from taskqueue.worker.outcome_outbox import OutcomeOutbox


class CheckpointPublisher:
    """Publishes the latest checkpoint of each attempt until it is confirmed.

    Args:
        outbox: publishes until confirmed.
        worker: the pod.
    """

    def __init__(self, outbox: OutcomeOutbox, *, worker: str) -> None:
        self._outbox = outbox
        self._worker = worker
        #: By token, while one is not confirmed: the one that waits, if any.
        self._waiting: dict[str, tuple[WorkMessage, bytes] | None] = {}

    def publish(self, message: WorkMessage, checkpoint: bytes) -> None:
        """Publish a checkpoint, a JSON object, now or after the one before it."""
        if message.token in self._waiting:
            self._waiting[message.token] = (message, checkpoint)
        else:
            self._publish(message, checkpoint)

    def flush(self, token: str) -> None:
        """Publish what waits: the attempt has ended, and its end is published next."""
        waiting = self._waiting.pop(token, None)
        if waiting is not None:
            self._publish(*waiting)

    def _publish(self, message: WorkMessage, checkpoint: bytes) -> None:
        self._waiting[message.token] = None
        event = event_of(
            message,
            EventKind.CHECKPOINT,
            worker=self._worker,
            checkpoint=decode_own(checkpoint),
        )
        self._outbox.publish(
            outcome_message(event.key, event.body), partial(self.flush, message.token)
        )
