"""Informers of one resource in several namespaces, as if they were one.

Contract: that of `taskqueue.kubernetes.informer`. The group is synced when all of them are. Between
namespaces there is no order. One that is interrupted does not hold up the others, once all are
synced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.informer import Informer, Key, ResourceEventHandler


class InformerGroup:
    """Lists and watches one resource at several paths, and hands its changes to one handler.

    Args:
        client: with a connection to spare for each watch.
        paths: of the lists; no object is in two of them.
        handler: receives the changes.
        selectors: labelSelector and fieldSelector.
        random: for delays.
        name: of its asyncio tasks.

    Attributes:
        synced: set once the first list of each is complete.
    """

    def __init__(
        self,
        client: ApiClient,
        paths: Sequence[str],
        handler: ResourceEventHandler,
        *,
        selectors: Mapping[str, str] | None = None,
        random: Random | None = None,
        name: str = "informer",
    ) -> None:
        self._name = name
        self._informers = [
            Informer(client, path, handler, selectors=selectors, random=random) for path in paths
        ]
        self.synced = asyncio.Event()

    @property
    def handler(self) -> ResourceEventHandler:
        """Receives the changes; it may be replaced while neither `run` nor `catch_up` runs."""
        return self._informers[0].handler

    @handler.setter
    def handler(self, handler: ResourceEventHandler) -> None:
        for informer in self._informers:
            informer.handler = handler

    def uid_of(self, key: Key) -> str | None:
        """Return the uid of the object with this key, as last seen; None: there is none."""
        found = (informer.uid_of(key) for informer in self._informers)
        return next((uid for uid in found if uid is not None), None)

    async def run(self) -> None:
        """List and watch until cancelled; no error of the API server ends it."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run(), name=self._name)
            await self._await_synced()

    async def catch_up(self) -> None:
        """Return once the handler has seen everything that was written before this call.

        `run` must not run meanwhile. No error of the API server ends it.
        """
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.catch_up(), name=self._name)
        self.synced.set()

    async def _await_synced(self) -> None:
        for informer in self._informers:
            await informer.synced.wait()
        self.synced.set()
