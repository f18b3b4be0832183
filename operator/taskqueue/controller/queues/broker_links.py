"""The operator's links: one for each broker, shared by all TaskQueues that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.controller.queues.broker_link import (
    BrokerLink,
    InboxMarkers,
    LinkDown,
    LinkUp,
)

OnMessage = Callable[[Delivery, BrokerLink], None]
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class BrokerLinks:
    """Makes the link to a broker when it is first needed, and closes unused ones.

    Args:
        installation: whose inboxes they read.
        feed_synced: set once all unfinished Tasks are known.
        random: for the pauses between tries.
        on_message: called with each message of an inbox, and its link.
        spawn: runs a link beside everything else.
    """

    def __init__(
        self,
        *,
        installation: str,
        feed_synced: asyncio.Event,
        random: Random,
        on_message: OnMessage,
        spawn: Spawn,
    ) -> None:
        self._installation = installation
        self._feed_synced = feed_synced
        self._random = random
        self._on_message = on_message
        self._spawn = spawn
        self._markers = InboxMarkers()
        self._links: dict[BrokerParameters, tuple[BrokerLink, asyncio.Task[None]]] = {}

    def get(self, parameters: BrokerParameters) -> BrokerLink:
        """Return the link to a broker, made if there is none."""
        self._close_where(lambda other, link: link.is_unused and other != parameters)
        if parameters not in self._links:
            link = BrokerLink(
                parameters,
                installation=self._installation,
                feed_synced=self._feed_synced,
                markers=self._markers,
                random=self._random,
            )
            link.on_message = self._on_message
            self._links[parameters] = (
                link,
                self._spawn(link.run(), f"broker {parameters.address}"),
            )
        return self._links[parameters][0]

    def unbind_all_keys(self) -> None:
        """Have all links take only what the TaskQueues are bound for."""
        for parameters, (link, _) in self._links.items():
            if isinstance(link.state, LinkUp):
                work = link.unbind_all_keys(link.state)
                self._spawn(work, f"bindings at {parameters.address}")

    def close_unused(self) -> None:
        """Close the unused links that are down; one that is up may still receive outcomes."""
        self._close_where(lambda _, link: link.is_unused and isinstance(link.state, LinkDown))

    def _close_where(self, which: Callable[[BrokerParameters, BrokerLink], bool]) -> None:
        for parameters, (link, task) in list(self._links.items()):
            if which(parameters, link):
                task.cancel()
                del self._links[parameters]
