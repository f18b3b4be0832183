"""Sends the worker's heartbeats: that it is alive, and what it runs.

They have a channel of their own beside the outcomes'. A broker that has no exchange for heartbeats
(an operator of another version), or refuses them, closes the channel, and outcomes must not suffer.
A heartbeat that cannot be sent is not sent later: the next one has newer data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.heartbeat import Heartbeat, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.limits import HEARTBEAT_SECONDS
from taskqueue.logs import EventLog
from taskqueue.worker.outcome_publisher import OutcomePublisher

log = EventLog("taskqueue.worker")

#: How long a channel may take to open, in seconds. A broker in an alarm does not read a connection
#: that publishes, and the last heartbeat must not delay the end of the worker.
OPEN_SECONDS = 2.0

#: Heartbeats for a change from idle to busy or back are at least this far apart, in seconds.
BUSY_CHANGE_SECONDS = 2.0

#: Such a change is reported when it has lasted this long, in seconds.
BUSY_DELAY_SECONDS = 0.1


class HeartbeatSender:
    """Sends heartbeats every `HEARTBEAT_SECONDS`, on request, and between idle and busy.

    A change from idle to busy or back is sent after a short delay: neither a very short run nor a
    worker that changes all the time is worth that many heartbeats.

    Args:
        publisher: its connection is used.
        describe: returns the worker's state as of now.
    """

    def __init__(self, publisher: OutcomePublisher, *, describe: Callable[[], Heartbeat]) -> None:
        self._publisher = publisher
        self._describe = describe
        self._loop = asyncio.get_running_loop()
        self._sent_at = -BUSY_CHANGE_SECONDS
        #: Whether the last one reported something that runs.
        self._sent_busy = False
        #: Set from a possible change until it is checked.
        self._busy_check: asyncio.TimerHandle | None = None
        self._soon = asyncio.Event()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._checked = False
        #: Why a heartbeat was not sent when that was last logged.
        self._logged_reason = ""

    def send_soon(self) -> None:
        """Send one now, before it is due: the worker's state has changed."""
        self._soon.set()

    def on_busy_changed(self) -> None:
        """Send one soon if the worker has become busy or idle and stays so; cheap."""
        if self._busy_check is None:
            at = max(self._loop.time() + BUSY_DELAY_SECONDS, self._sent_at + BUSY_CHANGE_SECONDS)
            self._busy_check = self._loop.call_at(at, self._check_busy)

    def _check_busy(self) -> None:
        self._busy_check = None
        if bool(self._describe().busy) != self._sent_busy:
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
        """Send one now, unless the channel takes longer than `OPEN_SECONDS` to open."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                channel = await self._open()
        except (BrokerUnavailable, TimeoutError):
            return  # the publisher logs what happens to its connection
        except ChannelRefused as refusal:
            self._log_refusal(str(refusal))
            return
        if channel is None:
            return
        heartbeat = self._describe()
        self._sent_at, self._sent_busy = self._loop.time(), bool(heartbeat.busy)
        message = OutgoingMessage(
            exchange=HEARTBEATS_EXCHANGE,
            key=heartbeat.routing_key,
            body=encode(heartbeat),
            content_type=CONTENT_TYPE,
            persistent=False,
        )
        channel.publish(message.exchange, message.key, message.body, message.properties())

    async def _open(self) -> Channel | None:
        """Return a channel on which the exchange is known to exist."""
        connection = self._publisher.connection
        if connection is None:
            return None
        if connection is not self._connection:
            self._connection, self._channel = connection, None
        if self._channel is not None and not self._channel.is_open:
            self._check_why_closed(self._channel)
            self._channel = None
        if self._channel is None:
            self._checked = False
            self._channel = await connection.channel()
        if self._checked:
            self._logged_reason = ""  # what was sent on it was not refused
        else:
            await self._channel.declare_exchange(HEARTBEATS_EXCHANGE, passive=True)
            self._checked = True
        return self._channel

    def _check_why_closed(self, channel: Channel) -> None:
        """Log a refused heartbeat: the broker refuses by closing the channel, and only then."""
        code, text = channel.closed.result() if channel.closed.done() else (0, "")
        if code:
            self._log_refusal(str(ChannelRefused(code, text)))

    def _log_refusal(self, reason: str) -> None:
        if reason != self._logged_reason:
            self._logged_reason = reason
            log.warning(
                "heartbeat.not_sent",
                reason=reason,
                hint="work is not affected; deploy an operator that declares the exchange, and let "
                "this user publish there",
            )
