"""Acknowledgements of one channel: what is confirmed in one loop turn leaves in few frames.

Delivery tags of a channel count up. When the oldest unsettled deliveries are all confirmed, one
``multiple`` acknowledgement covers them; what is confirmed beyond a still running one is
acknowledged alone. Invariant: a ``multiple`` never covers a tag that is not confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import Channel


class Acknowledger:
    """Settles the deliveries of one consume channel; silent once the channel is closed.

    Args:
        channel: they came by this one.
        loop: acknowledgements are sent at the end of its turn.
        on_settled: called when fewer deliveries are in hand than before.
    """

    def __init__(
        self,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        *,
        on_settled: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._loop = loop
        self._on_settled = on_settled
        #: Unsettled tags in the order they came (a dict for its order), True when confirmed.
        self._tags: dict[int, bool] = {}
        self._flushing = False

    @property
    def unsettled(self) -> int:
        """Deliveries the broker still holds for us, confirmed ones on their way included."""
        return len(self._tags)

    def received(self, tag: int) -> None:
        """Take note of a delivery."""
        self._tags[tag] = False

    def confirm(self, tag: int) -> None:
        """Acknowledge soon, with the others confirmed in this turn of the loop."""
        if tag not in self._tags:
            return
        self._tags[tag] = True
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def give_back(self, tag: int) -> None:
        """Return it to the queue; the broker counts a delivery."""
        if self._tags.pop(tag, None) is not None:
            self._channel.nack(tag, requeue=True)
            self._on_settled()

    def reject(self, tag: int) -> None:
        """Return it to the queue as failed; the broker counts a delivery."""
        if self._tags.pop(tag, None) is not None:
            self._channel.reject(tag, requeue=True)
            self._on_settled()

    def flush(self) -> None:
        """Send the acknowledgements that are due."""
        self._flushing = False
        prefix = []
        for tag, confirmed in self._tags.items():
            if not confirmed:
                break
            prefix.append(tag)
        for tag in prefix:
            del self._tags[tag]
        if prefix:
            self._channel.ack(prefix[-1], multiple=len(prefix) > 1)
        for tag in [tag for tag, confirmed in self._tags.items() if confirmed]:
            del self._tags[tag]
            self._channel.ack(tag)
        self._on_settled()
