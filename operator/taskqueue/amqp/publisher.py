"""Publishes with pipelined confirms, on a channel of its own.

A `Publisher` lives as long as its channel and does not reconnect: once `closed` is done, open
another on a new connection and publish again whatever was settled as unknown, with the same token.
The caller bounds the number of unconfirmed publishes, by `outstanding`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pika.spec import BasicProperties

from taskqueue.amqp.channel import CALLBACK, Channel
from taskqueue.amqp.confirms import OnSettled, Settled, UnconfirmedPublishes
from taskqueue.amqp.connection import Connection

__all__ = ["OnSettled", "Publisher", "Settled"]


class Publisher:
    """Publishes and settles each message exactly once; made by `open`.

    Attributes:
        closed: done, with the reason, when nothing can be published any more. Wait with
            `asyncio.wait` or `asyncio.shield`.
    """

    __slots__ = ("_channel", "_loop", "_on_return", "_outstanding", "closed")

    def __init__(
        self,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        on_return: Callable[[], None] | None = None,
    ) -> None:
        self._channel = channel
        self._loop = loop
        self._on_return = on_return
        self._outstanding = UnconfirmedPublishes(self._on_callback_error)
        self.closed: asyncio.Future[str] = loop.create_future()
        channel.closed.add_done_callback(self._on_closed)

    @classmethod
    async def open(
        cls, connection: Connection, *, on_return: Callable[[], None] | None = None
    ) -> Publisher:
        """Open a channel and put it into confirm mode.

        Args:
            connection: to open it on.
            on_return: called whenever the broker returns a message: it has no queue for it.

        Raises:
            BrokerUnavailable: the connection is closed, or closes meanwhile.
        """
        publisher = cls(await connection.channel(), asyncio.get_running_loop(), on_return)
        await publisher._channel.select_confirms(publisher._on_confirm, publisher._on_returned)
        return publisher

    @property
    def outstanding(self) -> int:
        """The number of publishes that are not settled yet."""
        return len(self._outstanding)

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        on_settled: OnSettled,
        *,
        mandatory: bool = True,
    ) -> None:
        """Publish, never waiting; ``on_settled`` is called exactly once, later.

        It gets the verdict and the broker's text (empty when confirmed). It may publish. What it
        raises goes to the loop's exception handler. Without ``mandatory`` a message no queue is
        bound for is confirmed and dropped: right for events that nobody has to read.

        Raises:
            ValueError: the message cannot be encoded, or has no message id (returns are matched by
                it); ``on_settled`` is not called then.
        """
        message_id = properties.message_id
        if not message_id:
            raise ValueError(
                f"a message for exchange {exchange}, key {key}, needs a message_id of its own: "
                "the broker's returns are matched by it"
            )
        if not self._channel.is_open:
            self._loop.call_soon(on_settled, Settled.UNKNOWN, self._why_closed())
            return
        self._channel.publish(exchange, key, body, properties, mandatory=mandatory)
        self._outstanding.add(message_id, on_settled)

    async def publish_and_wait(
        self, exchange: str, key: str, body: bytes, properties: BasicProperties
    ) -> tuple[Settled, str]:
        """Publish and wait for the verdict; raises as `publish`."""
        verdict: asyncio.Future[tuple[Settled, str]] = self._loop.create_future()

        def settled(outcome: Settled, text: str) -> None:
            if not verdict.done():
                verdict.set_result((outcome, text))

        self.publish(exchange, key, body, properties, settled)
        return await verdict

    async def close(self) -> None:
        """Close the channel; what is not settled by then is unknown."""
        await self._channel.close()
        self._abandon("the publisher was closed by this process")

    def _on_confirm(self, tag: int, multiple: bool, acked: bool) -> None:
        self._outstanding.on_confirm(tag, multiple=multiple, acked=acked)

    def _on_returned(self, message_id: str | None, reason: str) -> None:
        self._outstanding.on_return(message_id, reason)
        if self._on_return is not None:
            self._on_return()

    def _on_closed(self, closed: asyncio.Future[tuple[int, str]]) -> None:
        code, text = (0, "the channel is closed") if closed.cancelled() else closed.result()
        self._abandon(f"{code} {text}" if code else text)

    def _abandon(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
        self._outstanding.abandon(reason)

    def _on_callback_error(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {"message": "on_settled of a publish failed", "exception": error, CALLBACK: True}
        )

    def _why_closed(self) -> str:
        if self.closed.done() and not self.closed.cancelled():
            return self.closed.result()
        return "the channel is closing"
