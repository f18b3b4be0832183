"""What the operations of the gateway work with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from taskqueue.client.history import HistoryReader
from taskqueue.client.results import ResultReader
from taskqueue.gateway.credentials import Credentials
from taskqueue.gateway.producers import Producers

#: How long a store or a database that is away is asked again, in seconds.
_PATIENCE_SECONDS = 5.0


@dataclass(slots=True)
class Services:
    """Connections that all requests share.

    Attributes:
        credentials: make connections to the API server.
        draining: set when the gateway is to end: streams and waits end then.
        results: reads stores of results.
        history: reads archives.
        producers: send direct messages.
    """

    credentials: Credentials
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    results: ResultReader = field(
        default_factory=lambda: ResultReader(None, patience_seconds=_PATIENCE_SECONDS)
    )
    history: HistoryReader = field(
        default_factory=lambda: HistoryReader(patience_seconds=_PATIENCE_SECONDS)
    )
    producers: Producers = field(default_factory=Producers)

    async def close(self) -> None:
        """Close all connections."""
        await self.producers.close()
        await self.history.close()
        await self.results.close()
        await self.credentials.close()
