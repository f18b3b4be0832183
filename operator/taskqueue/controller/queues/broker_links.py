"""The operator's links: one for each broker, shared by all TaskQueues that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.controller.queues.broker_link import BrokerLink, InboxMarkers, LinkDown

Take = Callable[[Delivery, BrokerLink], None]
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class BrokerLinks:
    """See the module's contract.

    Args:
        feed_synced: set once all unfinished Tasks are known.
        random: for the pauses between tries.
        take: takes a message of an inbox, and the link it came by.
        spawn: runs a link beside everything else.
    """

    def __init__(
        self, *, feed_synced: asyncio.Event, random: Random, take: Take, spawn: Spawn
    ) -> None:
        self._feed_synced = feed_synced
        self._random = random
        self._take = take
        self._spawn = spawn
        self._markers = InboxMarkers()
        self._links: dict[BrokerParameters, tuple[BrokerLink, asyncio.Task[None]]] = {}

    def get(self, parameters: BrokerParameters) -> BrokerLink:
        """Return the link to a broker, made if there is none."""
        self._leave(lambda other, link: link.unused and other != parameters)
        if parameters not in self._links:
            link = BrokerLink(
                parameters,
                feed_synced=self._feed_synced,
                markers=self._markers,
                random=self._random,
            )
            link.take = lambda delivery: self._take(delivery, link)
            self._links[parameters] = (
                link,
                self._spawn(link.run(), f"broker {parameters.address}"),
            )
        return self._links[parameters][0]

    def leave_vain(self) -> None:
        """Give up the links that nobody uses and that are not up; one that is may hear outcomes."""
        self._leave(lambda _, link: link.unused and isinstance(link.state, LinkDown))

    def _leave(self, which: Callable[[BrokerParameters, BrokerLink], bool]) -> None:
        for parameters, (link, task) in list(self._links.items()):
            if which(parameters, link):
                task.cancel()
                del self._links[parameters]
