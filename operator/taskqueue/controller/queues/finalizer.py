"""The end of a TaskQueue with deletionPolicy Delete: its queues at the broker go with it.

Contract:

* The finalizer is on the object only while the policy asks for it. It is put there before the
  queues are declared, unless the API server refuses: work does not wait for it.
* A broker that is away delays the end of the object by `REMOVAL_SECONDS` at most; then the
  finalizer goes all the same, and an Event says which queues stay.
* Both queues go, the work queue first: what it still dead-letters meanwhile has a place to go to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.api.common import TASKQUEUE_KIND
from taskqueue.backoff import Backoff
from taskqueue.contract.names import dead_queue, work_queue
from taskqueue.kubernetes.broker_secret import NoBrokerSecret
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.events import WARNING, EventSpec, EventWriter, Regarding, event_name
from taskqueue.kubernetes.finalizers import set_queues_finalizer
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, QueueKey

log = EventLog(__name__)

#: How long the queues of a TaskQueue that is being deleted are tried to be removed.
REMOVAL_SECONDS = 60.0

_REPORTER = "taskqueue-operator"

Find = Callable[[], Awaitable[BrokerParameters]]
Connect = Callable[[BrokerParameters], Awaitable[Connection]]


async def _connect(parameters: BrokerParameters) -> Connection:
    return await connect(parameters, name="taskqueue-operator: delete queues")


class QueueFinalizer:
    """Keeps the finalizer as the policy has it, and does what it stands for.

    Args:
        config: what the TaskQueue asks for.
        client: for the API server.
        find: reads where the broker is; raises `NoBrokerSecret` or `ApiError`.
        connect: connects to it.
    """

    def __init__(
        self,
        config: QueueConfig,
        *,
        client: ApiClient,
        find: Find,
        connect: Connect = _connect,
    ) -> None:
        self._config = config
        self._client = client
        self._find = find
        self._connect = connect
        self._present = config.finalized
        self._removed = False
        self._random = Random()  # noqa: S311  (jitter, not secrets)

    def reconfigure(self, config: QueueConfig) -> None:
        """Take a changed TaskQueue."""
        self._config = config
        self._present = config.finalized

    async def settle(self) -> None:
        """Put the finalizer on the object, or take it away, as the policy asks.

        Raises:
            ApiError: try again.
        """
        if self._present != self._config.delete_queues:
            await self._put(self._config.delete_queues)

    async def finish(self, *, known: BrokerParameters | None) -> None:
        """Delete the queues of a TaskQueue that is being deleted, and let it go.

        Args:
            known: where the broker was, should its Secret be gone already.

        Raises:
            ApiError: the finalizer could not be taken away; call again.
        """
        if not self._present:
            return
        if not self._removed:
            problem = await self._remove(known)
            self._removed = True
            if problem is not None:
                await self._tell(problem)
        await self._put(False)

    async def _remove(self, known: BrokerParameters | None) -> str | None:
        """Return None when the queues are gone, else what was in the way."""
        problem = "no answer"
        backoff = Backoff(random=self._random.random)
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                while True:
                    try:
                        await self._try_to_remove(known)
                    except (
                        ApiError,
                        BrokerConfigurationError,
                        BrokerUnavailable,
                        ChannelRefused,
                        NoBrokerSecret,
                    ) as trouble:
                        problem = str(trouble)
                    else:
                        log.info("queue.removed", **self._fields)
                        return None
                    await asyncio.sleep(backoff.next_delay())
        except TimeoutError:
            pass
        return problem

    async def _try_to_remove(self, known: BrokerParameters | None) -> None:
        try:
            parameters = await self._find()
        except (ApiError, NoBrokerSecret):
            if known is None:
                raise
            parameters = known
        connection = await self._connect(parameters)
        try:
            channel = await connection.channel()
            for name in _names(self._config.key):
                await channel.delete_queue(name)
        finally:
            await connection.close()

    async def _tell(self, problem: str) -> None:
        names = " and ".join(_names(self._config.key))
        message = (
            f"{names} could not be deleted within {REMOVAL_SECONDS:g} s and may still be at the "
            f"broker: delete them there: {problem}"
        )
        log.warning("queue.not_removed", **self._fields, problem=problem)
        try:
            await self._create_warning(message)
        except ApiError as trouble:  # in a namespace that ends no Event can be made
            log.warning("queue.event_refused", **self._fields, problem=str(trouble))

    async def _create_warning(self, message: str) -> None:
        regarding = Regarding(
            kind=TASKQUEUE_KIND,
            namespace=self._config.namespace,
            name=self._config.name,
            uid=self._config.uid,
        )
        event = EventSpec(
            regarding=regarding,
            type=WARNING,
            reason="QueuesNotDeleted",
            action="DeleteQueues",
            note=message,
            name=event_name(regarding),
        )
        await EventWriter(self._client, instance=_REPORTER).create(event, at=time.time())

    async def _put(self, wanted: bool) -> None:
        await set_queues_finalizer(self._client, self._config, wanted=wanted)
        self._present = wanted

    @property
    def _fields(self) -> dict[str, Any]:
        return {"namespace": self._config.namespace, "queue": self._config.name}


def _names(key: QueueKey) -> tuple[str, str]:
    return work_queue(*key), dead_queue(*key)
