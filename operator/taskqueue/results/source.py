"""Where a worker finds its store of results: read for each result.

The operator's pods have the keys of the store's Secret in files, which the kubelet replaces when
the Secret changes; other workers have environment variables. A file counts before the variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from taskqueue.model.result_environment import RESULT_VARIABLES
from taskqueue.results.connection import (
    TIMEOUT_SECONDS,
    StoreConnection,
    open_store,
    read_connection,
)
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError


class StoreSource:
    """Reads the store's address and credentials.

    Args:
        variables: the worker's environment; empty values count as not set.
        directory: with a file for each key of the Secret; "": there is none.
    """

    def __init__(self, variables: Mapping[str, str], directory: str = "") -> None:
        self._variables = {
            key: variables[name] for name, key in RESULT_VARIABLES.items() if variables.get(name)
        }
        self._directory = directory

    @property
    def directory(self) -> str:
        """With the files; "": there is none."""
        return self._directory

    def drop_variables(self) -> None:
        """Forget the values of the environment, in a process that does not connect."""
        self._variables.clear()

    def read(self) -> StoreConnection:
        """Return the address and credentials as they are now.

        Raises:
            StoreError: something is missing or wrong, which may be corrected any moment.
        """
        found = dict(self._variables)
        for key in RESULT_VARIABLES.values() if self._directory else ():
            path = Path(self._directory, key)
            try:
                found[key] = path.read_text("utf-8")
            except FileNotFoundError:
                continue
            except (OSError, UnicodeError) as error:
                raise StoreError(f"{path} cannot be read: {error}", transient=True) from None
        try:
            return read_connection(found)
        except ValueError as error:
            where = self._directory or "TASKQUEUE_RESULTS_*"
            raise StoreError(
                f"in {where}: {error}: correct the Secret that spec.results.store of the TaskQueue "
                "names",
                transient=True,
            ) from None


class CurrentStore:
    """The store that a source names at the moment; a `taskqueue.results.store.ResultStore`.

    Args:
        source: says where it is.
        retention_seconds: how long what is written is kept; None: until somebody deletes it.
        timeout: of each call, in seconds.
    """

    def __init__(
        self,
        source: StoreSource,
        *,
        retention_seconds: float | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._source = source
        self._retention_seconds = retention_seconds
        self._timeout = timeout
        self._opened: tuple[StoreConnection, ResultStore] | None = None

    async def put(self, key: str, result: StoredResult) -> StoredResult:
        """Write a result."""
        return await (await self._store()).put(key, result)

    async def get(self, key: str) -> StoredResult | None:
        """Read a result."""
        return await (await self._store()).get(key)

    async def delete_before(self, prefix: str, moment: float) -> int:
        """Delete what is old."""
        return await (await self._store()).delete_before(prefix, moment)

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            (_, store), self._opened = self._opened, None
            await store.close()

    async def _store(self) -> ResultStore:
        connection = self._source.read()
        if self._opened is not None and self._opened[0] == connection:
            return self._opened[1]
        former, store = self._opened, self._open(connection)
        self._opened = (connection, store)
        if former is not None:  # calls under way fail, and are made again with the new one
            await former[1].close()
        return store

    def _open(self, connection: StoreConnection) -> ResultStore:
        return open_store(
            connection, retention_seconds=self._retention_seconds, timeout=self._timeout
        )
