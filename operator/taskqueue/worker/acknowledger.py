"""Acknowledgements of one channel: what is confirmed in one loop turn is sent in few frames.

Delivery tags of a channel count up. When the oldest unacknowledged deliveries are all confirmed,
one ``multiple`` acknowledgement covers them. A delivery confirmed while an older one still runs is
acknowledged alone. Invariant: a ``multiple`` never covers a tag that is not confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import Channel


class Acknowledger:
    """Acknowledges, rejects and requeues the deliveries of one channel, until it closes.

    Args:
        channel: the deliveries came by this one.
        loop: acknowledgements are sent at the end of its turn.
        on_acknowledged: called when fewer deliveries are unacknowledged than before.
    """

    def __init__(
        self,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        *,
        on_acknowledged: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._loop = loop
        self._on_acknowledged = on_acknowledged
        #: Unacknowledged tags in the order they came (a dict for its order), True when confirmed.
        self._tags: dict[int, bool] = {}
        self._flushing = False
        #: Tags up to this one came to consumers that have been cancelled.
        self._cancelled_tag = 0
        self._last_tag = 0

    @property
    def unacknowledged(self) -> int:
        """Deliveries that are not acknowledged yet, confirmed ones to be flushed included."""
        return len(self._tags)

    @property
    def left_over(self) -> int:
        """Those of them that came to consumers which have been cancelled since."""
        return sum(tag <= self._cancelled_tag for tag in self._tags)

    def received(self, tag: int) -> None:
        """Add a delivery."""
        self._tags[tag] = False
        self._last_tag = tag

    def on_consumers_cancelled(self) -> None:
        """Note that all consumers of the channel have been cancelled."""
        self._cancelled_tag = self._last_tag

    def confirm(self, tag: int) -> None:
        """Acknowledge soon, with the others confirmed in this turn of the loop."""
        if tag not in self._tags:
            return
        self._tags[tag] = True
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def requeue(self, tag: int) -> None:
        """Return it to the queue; the broker counts a delivery."""
        if self._tags.pop(tag, None) is not None:
            self._channel.nack(tag, requeue=True)
            self._on_acknowledged()

    def reject(self, tag: int) -> None:
        """Return it to the queue as failed; the broker counts a delivery."""
        if self._tags.pop(tag, None) is not None:
            self._channel.reject(tag, requeue=True)
            self._on_acknowledged()

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
        self._on_acknowledged()
