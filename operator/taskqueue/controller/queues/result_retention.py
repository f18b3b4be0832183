"""The store of a TaskQueue's results, as far as the operator is concerned.

It looks whether the store's Secret can be used, and deletes from the store what is older than the
retention: results of Tasks, and those of attempts whose outcome never arrived. All of that happens
beside the reconciler's loop, once in a while and for a bounded time, so a store that is away holds
up nothing. Only the leader does it: the others reconcile nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable, read_secret
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueConfig, ResultsConfig
from taskqueue.model.result import queue_prefix
from taskqueue.results.connection import (
    StoreConnection,
    check_foreign,
    open_store,
    read_connection,
)
from taskqueue.results.store import ResultStore, StoreError
from taskqueue.timestamps import Clock

log = EventLog(__name__)

TYPE = "ResultStoreReady"

#: How often the Secret is looked at, in seconds.
CHECK_SECONDS = 30.0

#: What is too old is deleted as often as that in a retention, and not more often than that.
_TIMES = 10
_DELETE_SECONDS_LEAST = 60.0
_DELETE_SECONDS_MOST = 3600.0

#: How long one deletion may take, in seconds; the next one goes on.
PASS_SECONDS = 60.0


class ResultRetention:
    """Checks a TaskQueue's store of results, and deletes from it what is too old.

    Args:
        client: for the API server.
        clock: wall time in seconds.
        open_result_store: opens a store.

    Attributes:
        condition: ResultStoreReady; None: there is no store, or nothing is known yet.
    """

    def __init__(
        self,
        client: ApiClient,
        clock: Clock = time.time,
        *,
        open_result_store: Callable[[StoreConnection], ResultStore] = open_store,
    ) -> None:
        self.condition: Condition | None = None
        self._client = client
        self._clock = clock
        self._open = open_result_store
        self._config: ResultsConfig | None = None
        self._next_check = 0.0
        self._next_deletion = 0.0
        self._running: asyncio.Task[None] | None = None
        #: What was wrong with the last deletion; "": nothing.
        self._failure = ""

    def reconcile(self, config: QueueConfig) -> None:
        """Start what is due; returns at once."""
        results = config.results
        if not results.secret:
            self.condition = None
            return
        now = asyncio.get_running_loop().time()
        if results != self._config:
            self._config, self._failure = results, ""
            self._next_check = 0.0
            # Spread, as all TaskQueues are seen at once when an operator begins to lead.
            self._next_deletion = now + random.uniform(0.0, _period(results))  # noqa: S311
        if now < self._next_check or self._running is not None:
            return
        self._next_check = now + CHECK_SECONDS
        self._running = asyncio.create_task(self._check(config), name="store of results")
        self._running.add_done_callback(self._on_checked)

    def close(self) -> None:
        """Stop."""
        if self._running is not None:
            self._running.cancel()

    def _on_checked(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("results.check_failed", exc_info=error)

    async def _check(self, config: QueueConfig) -> None:
        try:
            connection = await self._find(config)
        except SecretUnusable as problem:
            self.condition = Condition(TYPE, False, problem.reason, str(problem))
            return
        except ApiError as problem:
            log.warning("results.check_failed", **_fields(config), error=str(problem))
            return
        retention = config.results.retention_seconds
        now = asyncio.get_running_loop().time()
        if retention is not None and now >= self._next_deletion:
            self._next_deletion = now + _period(config.results)
            self._failure = await self._delete(config, connection, retention)
        self.condition = (
            Condition(TYPE, False, "StoreUnavailable", self._failure)
            if self._failure
            else Condition(TYPE, True, "SecretValid", f"results go to {connection.where}")
        )

    async def _find(self, config: QueueConfig) -> StoreConnection:
        """Read the Secret.

        Raises:
            SecretUnusable: there is none, or it cannot be used.
            ApiError: the API server could not be asked.
        """
        name = config.results.secret
        secret = await read_secret(
            self._client,
            (config.namespace, name),
            where=f"Secret {config.namespace}/{name} (spec.results.store.connectionSecret)",
            advice="create it with the key uri",
        )
        try:
            return read_connection(secret.data)
        except ValueError as problem:
            raise SecretUnusable("SecretInvalid", f"{secret.where}: {problem}") from None

    async def _delete(
        self, config: QueueConfig, connection: StoreConnection, retention: float
    ) -> str:
        """Delete what is too old; return what was wrong, "" if nothing was."""
        deleted = 0
        try:
            check_foreign(connection)
            store = self._open(connection)
            try:
                async with asyncio.timeout(PASS_SECONDS):
                    deleted = await store.delete_before(
                        queue_prefix(*config.key), self._clock() - retention
                    )
            finally:
                await store.close()
        except TimeoutError:  # the next one goes on where this one was
            log.info("results.deletion_continues", **_fields(config), seconds=PASS_SECONDS)
        except ValueError as problem:
            return f"what is older than the retention is not deleted: {problem}"
        except ImportError as problem:
            return (
                "what is older than the retention is not deleted: the operator's image has no "
                f"{problem.name}: install the extra results"
            )
        except StoreError as problem:
            log.warning("results.deletion_failed", **_fields(config), error=str(problem))
            # Not its text: whoever names an address must not read here what listens there.
            why = "is not available" if problem.transient else "refuses that, or is none"
            return (
                f"what is older than the retention is not deleted: {connection.where} {why}; the "
                "operator's log has the answer (results.deletion_failed)"
            )
        if deleted:
            log.info("results.deleted", **_fields(config), count=deleted)
        return ""


def _period(results: ResultsConfig) -> float:
    wanted = (results.retention_seconds or _DELETE_SECONDS_MOST) / _TIMES
    return min(max(wanted, _DELETE_SECONDS_LEAST), _DELETE_SECONDS_MOST)


def _fields(config: QueueConfig) -> dict[str, Any]:
    return {"namespace": config.namespace, "queue": config.name}
