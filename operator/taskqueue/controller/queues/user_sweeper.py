"""Deletes broker users of workers that no TaskQueue has any more.

A TaskQueue's users are deleted with it, by its finalizer. What is left over is of a TaskQueue whose
finalizer somebody removed, whose broker did not answer in time, or whose workers have other
credentials since: their pods are being replaced, and use the users until then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from taskqueue.amqp.parameters import ManagementEndpoint
from taskqueue.contract.worker_users import owner_of_user, user_prefix
from taskqueue.direct.broker_users import BrokerUsers
from taskqueue.logs import EventLog
from taskqueue.model.queue import CredentialsType, QueueConfig, QueueKey

log = EventLog(__name__)

#: Between two looks at a broker's users, in seconds. A user that turns out to be left over while
#: the operator runs is deleted at the second look.
SWEEP_SECONDS = 600.0
#: Endpoints that are remembered. Whoever may write a connection Secret can name ever new ones.
_ENDPOINTS = 1000


class _Configured(Protocol):
    @property
    def config(self) -> QueueConfig: ...


def managed(running: Mapping[QueueKey, tuple[_Configured, object]]) -> set[QueueKey]:
    """Return the TaskQueues, of those that run, whose workers have managed credentials."""
    return {
        key
        for key, (one, _) in running.items()
        if one.config.credentials.type is CredentialsType.MANAGED
    }


class UserSweeper:
    """Looks for left-over users, at each broker when it is first asked to and then now and then.

    Args:
        installation: whose users they are.
        managed: returns the TaskQueues whose workers have managed credentials; None: not all
            TaskQueues are known yet.
    """

    def __init__(
        self, installation: str, managed: Callable[[], Collection[QueueKey] | None]
    ) -> None:
        self._installation = installation
        self._managed = managed
        #: When an endpoint was last looked at, and which users were left over then.
        self._looks: dict[ManagementEndpoint, tuple[float, frozenset[str]]] = {}

    def is_due(self, endpoint: ManagementEndpoint, now: float, *, again: bool = True) -> bool:
        """Return whether to look; ``again``: also if that was done before."""
        if self._managed() is None:
            return False
        look = self._looks.get(endpoint)
        return look is None or (again and now - look[0] >= SWEEP_SECONDS)

    async def sweep(self, users: BrokerUsers, endpoint: ManagementEndpoint, now: float) -> None:
        """Delete what is left over in the endpoint's virtual host.

        Raises:
            ManagementError: the users cannot be listed or deleted; it is done at the next look.
        """
        before = self._looks.pop(endpoint, None)
        if len(self._looks) >= _ENDPOINTS:
            self._looks.pop(next(iter(self._looks)))
        self._looks[endpoint] = (now, frozenset() if before is None else before[1])
        prefix = user_prefix(self._installation, endpoint.broker.virtual_host)
        found = await users.list_names(prefix)
        managed = self._managed() or ()
        owners = {name: owner_of_user(name, prefix) for name in found}
        left = frozenset(name for name, own in owners.items() if own and own not in managed)
        deleted = left if before is None else left & before[1]
        await users.delete(sorted(deleted))
        self._looks[endpoint] = (now, left - deleted)
        for name in sorted(deleted):
            log.info("broker_user.swept", user=name, endpoint=endpoint.url)
