"""Which installation serves a TaskQueue: the one that `status.installation` names.

Contract:

* An installation claims a TaskQueue before it does anything for it. It writes its name where there
  is none; the API server refuses to change one name to another, so one of several has it.
* Nothing else writes that field, so a claim outlives its operator: the next leader of the
  installation goes on, and another installation takes over only when somebody has cleared it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.informer import identity
from taskqueue.kubernetes.taskqueue_codec import queue_path, read_installation
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey

log = EventLog(__name__)

_NOT_FOUND, _INVALID = 404, 422


def installation_id(namespace: str, installation: str) -> str:
    """Return the name of an installation that is unique in its cluster.

    Args:
        namespace: where its operator runs.
        installation: as at the broker; two operators may have the default by accident.
    """
    return f"{namespace}/{installation}"


class QueueClaims:
    """Claims TaskQueues for an installation, and remembers those that others have.

    Args:
        client: for the API server.
        installation: its `installation_id`.
    """

    def __init__(self, client: ApiClient, installation: str) -> None:
        self.installation = installation
        self._client = client
        #: Uids of the TaskQueues that are claimed.
        self._held: set[str] = set()
        #: TaskQueues that others have: their uid, and which installation that is.
        self._others: dict[QueueKey, tuple[str, str]] = {}

    def is_held(self, uid: str) -> bool:
        """Return whether a TaskQueue is claimed."""
        return uid in self._held

    def is_others(self, raw: Mapping[str, Any]) -> bool:
        """Return whether another installation has a TaskQueue, as its status says."""
        return read_installation(raw) not in ("", self.installation)

    def is_known(self, raw: Mapping[str, Any]) -> bool:
        """Return whether it is known already which installation a TaskQueue's status names."""
        (key, uid), holder = identity(raw), read_installation(raw)
        if self.is_others(raw):
            return self._others.get(key) == (uid, holder)
        return self.is_held(uid) == bool(holder)

    def has_other(self, key: QueueKey) -> bool:
        """Return whether another installation has the TaskQueue of this namespace and name."""
        return key in self._others

    def add_other(self, key: QueueKey, uid: str, holder: str) -> bool:
        """Note that another installation has a TaskQueue; return whether that is new."""
        self._held.discard(uid)
        is_new = self._others.get(key) != (uid, holder)
        if is_new:
            self._others[key] = uid, holder
            log.warning(
                "queue.served_elsewhere",
                namespace=key[0],
                queue=key[1],
                installation=holder,
                hint="it and its Tasks are left alone: take the namespace from one of the two "
                "installations, and clear status.installation if it is that one",
            )
        return is_new

    def pop_other(self, key: QueueKey) -> bool:
        """Note that no other installation has a TaskQueue; return whether one had it."""
        return self._others.pop(key, None) is not None

    def discard(self, key: QueueKey, uid: str) -> bool:
        """Forget a TaskQueue that was deleted; return whether another installation had it."""
        self._held.discard(uid)
        return self._others.get(key, ("",))[0] == uid and self.pop_other(key)

    async def claim(self, key: QueueKey, uid: str) -> str:
        """Claim a TaskQueue, however long the API server takes.

        Returns:
            The installation that serves it, this one or another; "": there is no such TaskQueue.
        """
        self._held.discard(uid)
        backoff = Backoff()
        while True:
            try:
                holder = await self._try_claim(key)
            except ApiError as problem:
                if problem.status == _NOT_FOUND:
                    return ""
                log.warning(
                    "queue.claim_failed", namespace=key[0], queue=key[1], error=str(problem)
                )
                await asyncio.sleep(problem.retry_after or backoff.next_delay())
                continue
            if holder == self.installation:
                self._held.add(uid)
            return holder

    async def _try_claim(self, key: QueueKey) -> str:
        path = queue_path(key)
        try:
            claim = {"status": {"installation": self.installation}}
            await self._client.merge(f"{path}/status", claim)
        except ApiError as refused:
            if refused.status != _INVALID:
                raise
            raw = await self._client.get(path)
            if not self.is_others(raw):
                raise  # refused for another reason, or cleared meanwhile
            return read_installation(raw)
        return self.installation
