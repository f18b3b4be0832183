"""Keeps the operator's topology at one broker declared while a link to it is up.

Somebody may delete an exchange, queue or binding while everybody stays connected. The broker does
not report it: a worker's publish to a deleted exchange closes its channel, a message without a
route is returned, and only the operator may declare. So what it has declared is looked at again in
a fixed interval, and when the broker returns a message of the operator's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.contract.topology import declare_operator_topology
from taskqueue.limits import TOPOLOGY_CHECK_SECONDS
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: However many messages the broker returns, it is asked no sooner again.
_SPACING_SECONDS = 1.0
_NOT_FOUND = 404


class TopologyWatch:
    """Looks whether the topology that all TaskQueues share is there, and declares what is missing.

    Args:
        connection: one that does not publish, or an alarm of the broker would block it.
        installation: whose queues it declares.
        on_recreated: called with the names of exchanges and queues that were missing and are there
            again. With them, bindings of TaskQueues may have been deleted.
    """

    def __init__(
        self,
        connection: Connection,
        installation: str,
        *,
        on_recreated: Callable[[frozenset[str]], None],
    ) -> None:
        self._connection = connection
        self._installation = installation
        self._on_recreated = on_recreated
        self._returned = asyncio.Event()

    def on_return(self) -> None:
        """Look soon: the broker has no queue for a message."""
        self._returned.set()

    async def run(self) -> None:
        """Look until cancelled.

        Raises:
            TopologyConflict: an exchange or queue was made again with other arguments.
            ChannelRefused: the operator's broker user may not declare any more.
            BrokerUnavailable: the connection is lost.
        """
        while True:
            try:
                async with asyncio.timeout(TOPOLOGY_CHECK_SECONDS):
                    await self._returned.wait()
            except TimeoutError:
                pass
            self._returned.clear()
            await self._check()
            await asyncio.sleep(_SPACING_SECONDS)

    async def _check(self) -> None:
        address = self._connection.parameters.address
        try:
            created = await declare_operator_topology(self._connection, self._installation)
        except ChannelRefused as refusal:
            if refusal.code != _NOT_FOUND:
                raise
            # A queue that exists has no leader just now: no reason to stop what works.
            log.warning(
                "topology.check_failed",
                broker=address,
                error=str(refusal),
                hint="the operator looks again; if this lasts, check the broker's nodes",
            )
            return
        if created:
            log.warning(
                "topology.recreated",
                broker=address,
                names=sorted(created),
                hint="somebody deleted them while the operator was connected; what was in them, or "
                "was published to them meanwhile, may be lost",
            )
            self._on_recreated(created)
