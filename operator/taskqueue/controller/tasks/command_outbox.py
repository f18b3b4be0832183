"""Sends orders to the workers, and keeps those about attempts until the broker has confirmed them.

These survive a lost connection, not a lost process: whoever leads next decides what it finds
anew, and a worker that reports an attempt nobody waits for is ordered to stop it.

An order to drain is sent at once or not at all: after an outage its worker may be wanted again, and
there is no order to take it back. As long as it is wanted it is given again.
"""

from __future__ import annotations

from collections import deque

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import CommandKind, WorkerCommand, order_message

#: Orders kept while the broker is away; of more, the oldest are forgotten.
_KEPT = 10_000


class CommandOutbox:
    """See the module's contract."""

    def __init__(self) -> None:
        self._publisher: Publisher | None = None
        self._waiting: deque[WorkerCommand] = deque(maxlen=_KEPT)

    def __len__(self) -> int:
        """Return how many orders wait for the broker."""
        return len(self._waiting)

    def open(self, publisher: Publisher) -> None:
        """Send what waits, and from now on at once."""
        self._publisher = publisher
        waiting, self._waiting = self._waiting, deque(maxlen=_KEPT)
        for order in waiting:
            self.send(order)

    def close(self) -> None:
        """Keep orders until opened again."""
        self._publisher = None

    def send(self, order: WorkerCommand) -> None:
        """Send an order, now or, if it is kept, when the broker is there again."""
        publisher = self._publisher
        if publisher is None:
            self._keep(order)
            return
        message = order_message(order)

        def settled(verdict: Settled, _: str) -> None:
            if verdict is Settled.CONFIRMED:
                return
            if self._publisher in (None, publisher):
                self._keep(order)  # until the next connection
            elif _is_kept(order):
                self.send(order)

        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), settled
        )

    def _keep(self, order: WorkerCommand) -> None:
        if _is_kept(order):
            self._waiting.append(order)


def _is_kept(order: WorkerCommand) -> bool:
    return order.kind is not CommandKind.DRAIN
