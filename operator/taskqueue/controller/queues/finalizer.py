"""Deletes at the broker what goes with a TaskQueue: queues (deletionPolicy Delete), managed users.

Contract:

* The finalizer is on the object only while there is such a thing. It is added before that is made,
  unless the API server rejects it: work does not wait for it.
* A broker that is unavailable delays the object's deletion by `REMOVAL_SECONDS` at most; then the
  finalizer is removed all the same, and an Event names what stays.
* The bindings of the operator's own queues are deleted with them. A TaskQueue whose queues stay
  keeps these too: workers may still consume the work queue, and an outcome without a route would
  hold them up.
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
from taskqueue.contract.names import dead_queue, operator_name, work_queue
from taskqueue.contract.outbox import ARCHIVE_OUTBOX
from taskqueue.contract.topology import delete_task_queue
from taskqueue.controller.queues.broker_session import outboxes
from taskqueue.direct.management_http import ManagementError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.event_api import WARNING, EventSpec, EventWriter, Regarding, event_name
from taskqueue.kubernetes.finalizers import set_queues_finalizer
from taskqueue.kubernetes.secret_values import SecretUnusable
from taskqueue.logs import EventLog
from taskqueue.model.queue import CredentialsType, QueueConfig

log = EventLog(__name__)

#: How long the operator tries to delete it.
REMOVAL_SECONDS = 60.0

_REPORTER = "taskqueue-operator"

Find = Callable[[QueueConfig], Awaitable[BrokerParameters]]
Connect = Callable[..., Awaitable[Connection]]


class QueueFinalizer:
    """Sets the finalizer as the spec asks, and deletes what is at the broker at the end.

    Args:
        client: for the API server.
        installation: whose operator got the queue's events.
        find_parameters: returns where the broker is; raises `SecretUnusable` or `ApiError`.
        delete_users: deletes managed users there; raises `ManagementError`,
            `SecretUnusable` or `ApiError`.
        connect: connects to it.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        installation: str,
        find_parameters: Find,
        delete_users: Callable[[QueueConfig], Awaitable[None]],
        connect: Connect = connect,
    ) -> None:
        self._client = client
        self._installation = installation
        self._find_parameters = find_parameters
        self._delete_users = delete_users
        self._connect = connect
        #: The spec with which the finalizer was last written, and whether it was added.
        self._written: tuple[QueueConfig, bool] | None = None
        self._deleted = False
        self._random = Random()  # noqa: S311  (jitter, not secrets)

    async def sync_finalizer(self, config: QueueConfig) -> None:
        """Add the finalizer to the object, or remove it, as the spec asks.

        Args:
            config: what the TaskQueue asks for.

        Raises:
            ApiError: try again.
        """
        if self._is_present(config) != config.leaves_at_broker:
            await self._write_finalizer(config, config.leaves_at_broker)

    async def finalize(self, config: QueueConfig, *, known: BrokerParameters | None) -> None:
        """Delete what a TaskQueue that is being deleted leaves, and remove the finalizer.

        Args:
            config: what the TaskQueue asks for.
            known: where the broker was, in case its Secret is already deleted.

        Raises:
            ApiError: the finalizer could not be removed; call again.
        """
        if not self._is_present(config):
            return
        if not self._deleted:
            problem = await self._delete(config, known)
            self._deleted = True
            if problem is not None:
                await self._warn_not_deleted(config, problem)
        await self._write_finalizer(config, False)

    def _is_present(self, config: QueueConfig) -> bool:
        """Return whether the object has the finalizer: as last written, or as last seen."""
        if self._written is not None and self._written[0] is config:
            return self._written[1]
        return config.finalized

    async def _delete(self, config: QueueConfig, known: BrokerParameters | None) -> str | None:
        """Delete everything; return None, or why it could not be deleted in time."""
        problem = "no answer"
        backoff = Backoff(random=self._random.random)
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                while True:
                    try:
                        await self._try_delete(config, known)
                    except (
                        ApiError,
                        BrokerConfigurationError,
                        BrokerUnavailable,
                        ChannelRefused,
                        ManagementError,
                        SecretUnusable,
                    ) as trouble:
                        problem = str(trouble)
                    else:
                        return None
                    await asyncio.sleep(backoff.next_delay())
        except TimeoutError:
            pass
        return problem

    async def _try_delete(self, config: QueueConfig, known: BrokerParameters | None) -> None:
        try:
            parameters = await self._find_parameters(config)
        except (ApiError, SecretUnusable):
            if known is None:
                raise
            parameters = known
        if config.credentials.type is CredentialsType.MANAGED:
            await self._delete_users(config)
            log.info("broker_user.deleted", **_fields(config))
        if config.delete_queues:
            await self._delete_queues(config, parameters)

    async def _delete_queues(self, config: QueueConfig, parameters: BrokerParameters) -> None:
        name = f"{operator_name(self._installation)}: delete queues"
        connection = await self._connect(parameters, name=name)
        try:
            await delete_task_queue(
                connection,
                *config.key,
                self._installation,
                sinks={ARCHIVE_OUTBOX, *outboxes(config)},
            )
        finally:
            await connection.close()
        log.info("broker_queue.deleted", **_fields(config))

    async def _warn_not_deleted(self, config: QueueConfig, problem: str) -> None:
        names = " and ".join(_left_at_broker(config))
        message = (
            f"{names} could not be deleted within {REMOVAL_SECONDS:g} s and may still be at the "
            f"broker: delete them there: {problem}"
        )
        log.warning("broker_queue.delete_failed", **_fields(config), error=problem)
        try:
            await self._create_warning(config, message)
        except ApiError as trouble:  # a namespace that is being deleted takes no Events
            log.warning("event.rejected", **_fields(config), error=str(trouble))

    async def _create_warning(self, config: QueueConfig, message: str) -> None:
        regarding = Regarding(
            kind=TASKQUEUE_KIND,
            namespace=config.namespace,
            name=config.name,
            uid=config.uid,
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

    async def _write_finalizer(self, config: QueueConfig, wanted: bool) -> None:
        await set_queues_finalizer(self._client, config, wanted=wanted)
        self._written = (config, wanted)


def _fields(config: QueueConfig) -> dict[str, Any]:
    return {"namespace": config.namespace, "queue": config.name}


def _left_at_broker(config: QueueConfig) -> list[str]:
    """Return what of a TaskQueue is deleted at the broker, in words."""
    queues = [work_queue(*config.key), dead_queue(*config.key)] if config.delete_queues else []
    managed = config.credentials.type is CredentialsType.MANAGED
    users = [f"the users of the workers of {config.namespace}/{config.name}"] if managed else []
    return queues + users
