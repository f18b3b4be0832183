"""Reads Tasks that have ended from the archive of their TaskQueue.

The archive is reached with what the caller has: the TaskQueue and the Secret it names are read with
the caller's own rights, or the caller gives the address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskqueue.api.common import GROUP, VERSION
from taskqueue.client.errors import NoArchive, Unavailable
from taskqueue.client.requests import client_error, request_with_retries
from taskqueue.direct.errors import ClientError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable, read_secret
from taskqueue.results.connection import check_foreign, read_connection

if TYPE_CHECKING:
    from taskqueue.archive.archive import Archive
    from taskqueue.archive.errors import ArchiveError
    from taskqueue.archive.history import HistoryFilter
    from taskqueue.archive.rows import ArchivedTask


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some of the Tasks that were asked for.

    Attributes:
        tasks: the last that ended first.
        next_page: where the next page begins, an argument of the next call; "": this is the last.
    """

    tasks: tuple[ArchivedTask, ...]
    next_page: str = ""


class HistoryReader:
    """Reads pages, over one connection to each database.

    Args:
        patience_seconds: how long a request to the API server is retried.
    """

    def __init__(self, *, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._archives: dict[str, Archive] = {}

    async def read(
        self, address: str, wanted: HistoryFilter, *, page: str, limit: int
    ) -> HistoryPage:
        """Return a page.

        Args:
            address: of the database, postgresql://.
            wanted: which Tasks.
            page: `HistoryPage.next_page` of the page before; "": from the beginning.
            limit: of Tasks, 1 to 1000.

        Raises:
            ValueError: an argument is not valid.
            NoArchive: there is no archive, or it may not be read.
            Unavailable: the database does not answer.
        """
        from taskqueue.archive.errors import ArchiveError
        from taskqueue.archive.history import MOST_ROWS, Place

        if not 1 <= limit <= MOST_ROWS:
            raise ValueError(f"limit is {limit}: give a number from 1 to {MOST_ROWS}")
        after = Place.from_token(page) if page else None
        archive = self._open(address)
        try:
            rows = await archive.read(wanted, after=after, rows=limit + 1)
        except ArchiveError as error:
            raise _client_error(error) from error
        shown = tuple(rows[:limit])
        more = len(rows) > limit
        return HistoryPage(shown, Place(shown[-1].completed, shown[-1].uid).token() if more else "")

    def _open(self, address: str) -> Archive:
        archive = self._archives.get(address)
        if archive is None:
            try:  # a program that asks for no history needs no library for it
                from taskqueue.archive.archive import Archive
            except ImportError as error:
                raise _needs_library(error) from error
            try:
                connection = read_connection({"uri": address}, only="postgresql")
            except ValueError as error:
                raise NoArchive(f"the address of the archive: {error}") from None
            archive = self._archives[address] = Archive(connection, may_create=False)
        return archive

    async def find_address(self, api: ApiClient, namespace: str, queue: str) -> str:
        """Return the address of a TaskQueue's archive, from the Secret that it names.

        Raises:
            NoArchive: it has none, or the Secret may not be read.
            Refused: the API server refused the request for the TaskQueue.
            Unavailable: the API server did not answer.
        """
        where = f"TaskQueue {namespace}/{queue}"
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/taskqueues/{queue}"
        try:
            raw = await request_with_retries(api, "GET", path, patience_seconds=self._patience)
            name = _secret_of(raw)
            if not name:
                raise NoArchive(f"{where} has no archive: set spec.archive, or give archive=")
            secret = await read_secret(
                api, (namespace, name), where=f"Secret {namespace}/{name}", advice="create it"
            )
            found = read_connection(secret.data, only="postgresql")
            check_foreign(found)
        except ImportError as error:
            raise _needs_library(error) from error
        except (SecretUnusable, ValueError) as error:
            raise NoArchive(
                f"the archive of {where} cannot be found: {error}, or give its address as archive="
            ) from error
        except ApiError as error:
            if error.status == 404:
                raise NoArchive(f"{where} does not exist: give archive=") from error
            raise client_error(error, f"find the archive of {where}") from error
        return found.uri

    async def close(self) -> None:
        """Close all connections."""
        while self._archives:
            await self._archives.popitem()[1].close()


def _secret_of(raw: Mapping[str, Any]) -> str:
    archive = raw["spec"].get("archive") or {}
    return str((archive.get("connectionSecret") or {}).get("name") or "")


def _needs_library(error: ImportError) -> NoArchive:
    return NoArchive(f"the history needs {error.name}: install taskqueue-operator[results]")


def _client_error(error: ArchiveError) -> ClientError:
    text = f"cannot read the archive at {error}"
    return Unavailable(text) if error.trouble == "ArchiveUnavailable" else NoArchive(text)
