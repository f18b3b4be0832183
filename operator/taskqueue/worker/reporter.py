"""Publishes what a worker has to say until the broker has confirmed each of it.

A message that is returned (no inbox yet) or whose fate is unknown (the connection went) is kept
and published again; the token in an outcome makes a double harmless. The reporter outlives
publishers: after a reconnect a new one is attached. How much is kept is bounded by the deliveries
in hand, which stay unacknowledged for as long.

An outcome leaves at once. Only when `AT_ONCE` messages await their confirm already, those of one
routing key gather and leave together in one message, with the next confirm or after
`GATHER_SECONDS`: the busier the broker, the fewer messages it gets.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from taskqueue.broker.backoff import delays
from taskqueue.broker.batches import BATCH_CONTENT_TYPE, batch
from taskqueue.broker.events import CONTENT_TYPE
from taskqueue.broker.publisher import Publisher, Settled
from taskqueue.broker.worker_messages import Outgoing
from taskqueue.logs import EventLog

log = EventLog("taskqueue.worker")

#: Messages under way before outcomes gather.
AT_ONCE = 4
#: Outcomes wait so long for others, in seconds.
GATHER_SECONDS = 0.005
#: More than this do not leave in one message, nor more bytes, unless one outcome has more.
GATHER_LIMIT = 64
GATHER_BYTES = 64 * 1024

OnConfirmed = Callable[[], None]


class Reporter:
    """Messages in hand: published and not yet confirmed, or waiting to be published again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._publisher: Publisher | None = None
        self._waiting: list[tuple[Outgoing, OnConfirmed]] = []
        self._outstanding = 0
        #: What leaves together, of one routing key, and the bytes of it.
        self._gathered: list[tuple[Outgoing, OnConfirmed]] = []
        self._gathered_bytes = 0
        self._gathering: asyncio.TimerHandle | None = None
        #: Messages that were published and are not settled.
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._delays = delays(random.random)
        self._failing = False
        #: Why the last message came back, "" while messages get through: logged once a reason.
        self._refusal = ""
        self._drained: asyncio.Future[None] | None = None

    @property
    def outstanding(self) -> int:
        """Messages the broker has not confirmed."""
        return self._outstanding

    def attach(self, publisher: Publisher) -> None:
        """Publish through this one from now on, what waits first."""
        self._publisher = publisher
        self._publish_waiting()

    def detach(self) -> None:
        """The publisher is gone: keep everything until the next one."""
        self._publisher = None
        self._waiting += self._take_gathered()

    def report(self, message: Outgoing, on_confirmed: OnConfirmed) -> None:
        """Publish, again and again if need be, until confirmed; then call ``on_confirmed``."""
        self._outstanding += 1
        if self._publisher is None:
            self._waiting.append((message, on_confirmed))
        elif message.content_type == CONTENT_TYPE and self._under_way >= AT_ONCE:
            self._gather(message, on_confirmed)
        else:
            self._publish(self._publisher, [(message, on_confirmed)])

    def mention(self, message: Outgoing) -> None:
        """Publish once, if that is possible now; nobody waits for it."""
        if self._publisher is not None:
            self._publisher.publish(
                message.exchange, message.key, message.body, message.properties(), _ignore
            )

    async def drained(self) -> None:
        """Return when nothing is outstanding."""
        while self._outstanding:
            self._drained = self._loop.create_future()
            await self._drained

    def _gather(self, message: Outgoing, on_confirmed: OnConfirmed) -> None:
        size = len(message.body)
        if self._gathered and (
            message.key != self._gathered[0][0].key
            or self._gathered_bytes + size > GATHER_BYTES
            or len(self._gathered) == GATHER_LIMIT
        ):
            self._publish_gathered()
        self._gathered.append((message, on_confirmed))
        self._gathered_bytes += size
        if self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_SECONDS, self._publish_gathered)

    def _take_gathered(self) -> list[tuple[Outgoing, OnConfirmed]]:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        return gathered

    def _publish_gathered(self) -> None:
        gathered = self._take_gathered()
        if gathered and self._publisher is not None:
            self._publish(self._publisher, gathered)

    def _publish(self, publisher: Publisher, told: Sequence[tuple[Outgoing, OnConfirmed]]) -> None:
        """Publish one message with all of it."""

        def settled(verdict: Settled, text: str) -> None:
            self._under_way -= 1
            for message, on_confirmed in told:
                if verdict is Settled.CONFIRMED:
                    self._confirmed(on_confirmed)
                else:
                    self._keep(message, on_confirmed, verdict, text)
            if self._under_way < AT_ONCE:
                self._publish_gathered()

        message = told[0][0]
        if len(told) > 1:
            body = batch([each.body for each, _ in told])
            message = replace(message, body=body, content_type=BATCH_CONTENT_TYPE)
        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), settled
        )
        self._under_way += 1

    def _confirmed(self, on_confirmed: OnConfirmed) -> None:
        self._outstanding -= 1
        if self._failing:
            self._failing = False
            self._refusal = ""
            self._delays = delays(random.random)
        on_confirmed()
        if not self._outstanding and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _keep(
        self, message: Outgoing, on_confirmed: OnConfirmed, verdict: Settled, text: str
    ) -> None:
        self._waiting.append((message, on_confirmed))
        self._failing = True
        if verdict is Settled.RETURNED and self._refusal != text:
            self._refusal = text
            log.warning(
                "outcome.unroutable",
                exchange=message.exchange,
                key=message.key,
                reason=text,
                todo="start the operator, it declares the inbox; the outcome is kept until then",
            )
        if self._timer is None:
            self._timer = self._loop.call_later(next(self._delays), self._again)

    def _again(self) -> None:
        self._timer = None
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        if self._publisher is None:
            return
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            self._publish(self._publisher, [told])


def _ignore(verdict: Settled, text: str) -> None:
    """Nobody waits for this message."""
