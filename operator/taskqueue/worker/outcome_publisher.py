"""The connection outcomes leave by, kept open for as long as the worker lives.

A connection of its own: under a memory alarm the broker stops reading connections that publish,
and acknowledgements must not be stuck behind that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.logs import EventLog
from taskqueue.worker.outcome_outbox import OutcomeOutbox

log = EventLog("taskqueue.worker")


class OutcomePublisher:
    """Gives the reporter a publisher, and another one after every loss."""

    def __init__(
        self,
        parameters: BrokerParameters,
        *,
        name: str,
        reporter: OutcomeOutbox,
        on_ready: Callable[[], None],
    ) -> None:
        self._parameters = parameters
        self._on_ready = on_ready
        self._name = name
        self._reporter = reporter
        #: The connection while there is one, for what need not arrive.
        self.connection: Connection | None = None

    async def run(self) -> None:
        """Keep the line until cancelled; then close it.

        Raises:
            BrokerConfigurationError: a certificate or key cannot be read.
        """
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        told = ""
        while True:
            try:
                reason = await self._hold(backoff.succeeded)
            except BrokerUnavailable as problem:
                reason = str(problem)
            if backoff.has_held():
                told = ""
            if reason != told:
                told = reason
                log.warning("publisher.lost", reason=reason, outstanding=self._reporter.outstanding)
            await asyncio.sleep(backoff.next_delay())

    async def _hold(self, on_up: Callable[[], None]) -> str:
        """Connect, lend the publisher, and return why it ended."""
        connection: Connection | None = None
        try:
            connection = await connect(self._parameters, name=self._name)
            publisher = await Publisher.open(connection)
            self._reporter.attach(publisher)
            self.connection = connection
            on_up()
            self._on_ready()
            log.debug("publisher.ready")
            await asyncio.wait({publisher.closed})
            return publisher.closed.result()
        finally:
            self._reporter.detach()
            self.connection = None
            if connection is not None:
                await connection.close()
