"""The connection outcomes leave by, kept open for as long as the worker lives.

A connection of its own: under a memory alarm the broker stops reading connections that publish,
and acknowledgements must not be stuck behind that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher
from taskqueue.backoff import delays
from taskqueue.logs import EventLog
from taskqueue.worker.outcome_outbox import OutcomeOutbox

log = EventLog("taskqueue.worker")

#: A line that held this long has worked: the next loss begins with short delays again. A shorter
#: life does not count, so a broker that accepts and closes at once is not hammered.
HELD_SECONDS = 5.0


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
        loop = asyncio.get_running_loop()
        waits = delays(random.random)
        told = ""
        while True:
            begun = loop.time()
            try:
                reason = await self._hold()
            except BrokerUnavailable as problem:
                reason = str(problem)
            if loop.time() - begun >= HELD_SECONDS:
                waits, told = delays(random.random), ""
            if reason != told:
                told = reason
                log.warning("publisher.lost", reason=reason, outstanding=self._reporter.outstanding)
            await asyncio.sleep(next(waits))

    async def _hold(self) -> str:
        """Connect, lend the publisher, and return why it ended."""
        connection: Connection | None = None
        try:
            connection = await connect(self._parameters, name=self._name)
            publisher = await Publisher.open(connection)
            self._reporter.attach(publisher)
            self.connection = connection
            self._on_ready()
            log.debug("publisher.ready")
            await asyncio.wait({publisher.closed})
            return publisher.closed.result()
        finally:
            self._reporter.detach()
            self.connection = None
            if connection is not None:
                await connection.close()
