"""Says every few seconds that this worker lives, and what it does.

On a channel of its own beside the outcomes': a broker that has no exchange for heartbeats (an
operator of another version), or refuses them, closes the channel over it, and outcomes must not
suffer. A heartbeat that cannot be sent is not sent later: the next one says more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.heartbeat import HEARTBEAT_SECONDS, Heartbeat, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.logs import EventLog

log = EventLog("taskqueue.worker")

#: How long a channel may take to open. A broker in an alarm does not read what this side publishes
#: on, and the last heartbeat must not keep the worker from its end.
OPEN_SECONDS = 2.0

#: Turns from idle to busy and back are told at most this often, in seconds,
TURN_SECONDS = 2.0
#: and when they have lasted so long.
SETTLE_SECONDS = 0.1


class HeartbeatConnection(Protocol):
    """Who has the connection that outcomes leave by."""

    @property
    def connection(self) -> Connection | None:
        """None while it is being made."""


class HeartbeatSender:
    """Sends what ``beat`` returns, every `HEARTBEAT_SECONDS`, when asked to, and on turns.

    A turn from idle to busy or back is told soon and not at once: a run as short as the pause
    before it is not worth two heartbeats, and neither is a worker that turns all the time.

    Args:
        line: lends its connection.
        beat: describes the worker as it is now.
    """

    def __init__(self, line: HeartbeatConnection, *, beat: Callable[[], Heartbeat]) -> None:
        self._line = line
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._sent_at = -TURN_SECONDS
        #: Whether the last one told of something that runs.
        self._told_busy = False
        #: Runs from a turn until it is looked at.
        self._turning: asyncio.TimerHandle | None = None
        self._soon = asyncio.Event()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._checked = False
        self._told = ""

    def send_soon(self) -> None:
        """Send one now rather than when it is due: the worker's state has changed."""
        self._soon.set()

    def turned(self) -> None:
        """Send one soon if the worker turns out to have become busy or idle; cheap."""
        if self._turning is None:
            at = max(self._loop.time() + SETTLE_SECONDS, self._sent_at + TURN_SECONDS)
            self._turning = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._turning = None
        if bool(self._beat().busy) != self._told_busy:
            self._soon.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._soon.clear()
            await self.send()
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._soon.wait()
            except TimeoutError:
                pass

    async def send(self) -> None:
        """Send one now, if that can be done soon."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                channel = await self._open()
        except (BrokerUnavailable, TimeoutError):
            return  # there is trouble with the connection: its line tells of that
        except ChannelRefused as refusal:
            self._complain(str(refusal))
            return
        if channel is None:
            return
        beat = self._beat()
        self._sent_at, self._told_busy = self._loop.time(), bool(beat.busy)
        message = OutgoingMessage(
            exchange=HEARTBEATS_EXCHANGE,
            key=beat.routing_key,
            body=encode(beat),
            content_type=CONTENT_TYPE,
            persistent=False,
        )
        channel.publish(message.exchange, message.key, message.body, message.properties())

    async def _open(self) -> Channel | None:
        """Return a channel on which the exchange is known to be there."""
        connection = self._line.connection
        if connection is None:
            return None
        if connection is not self._connection:
            self._connection, self._channel = connection, None
        if self._channel is not None and not self._channel.is_open:
            self._look_why_closed(self._channel)
            self._channel = None
        if self._channel is None:
            self._checked = False
            self._channel = await connection.channel()
        if self._checked:
            self._told = ""  # what was sent on it was not refused
        else:
            await self._channel.declare_exchange(HEARTBEATS_EXCHANGE, passive=True)
            self._checked = True
        return self._channel

    def _look_why_closed(self, channel: Channel) -> None:
        """Tell of a heartbeat the broker refused: it says so when it has come, or not at all."""
        code, text = channel.closed.result() if channel.closed.done() else (0, "")
        if code:
            self._complain(str(ChannelRefused(code, text)))

    def _complain(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            log.warning(
                "heartbeat.not_sent",
                reason=reason,
                todo="nothing is lost; deploy an operator that declares the exchange, and let this "
                "user publish there",
            )
