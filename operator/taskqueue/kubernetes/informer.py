"""Lists and then watches a resource, for resources with tens of thousands of objects.

Contract:

* `ResourceEventHandler.on_upserted` is called for every object added or changed,
  `ResourceEventHandler.on_deleted` for every object that was deleted, or that the selector no
  longer matches. A watch does not distinguish the two; whoever needs to know reads the object.
* Both are called from the informer's own task, in the order of the API server, and must not block.
* After an interruption the watch resumes from the last resource version. When that has expired
  (410), the informer lists again; objects known before and missing in the list count as deleted.
* `Informer.synced` is set once the first list is complete.
* After `Informer.catch_up` the handler knows everything that was written before that call. A watch
  alone never says so: it may be behind, or dead without anybody's knowledge.
* `ResourceEventHandler.on_unreadable` is called instead of `on_upserted` for an object that cannot
  be parsed (nested deeper than the parser goes) or is too large. It stops no other object.

Bookmarks keep the resource version fresh on quiet resources. Lists are read in pages
(`taskqueue.kubernetes.pages`), so that neither side holds a whole list at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from random import Random
from typing import Any, Protocol

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import ApiClient, ApiError, version_of
from taskqueue.kubernetes.pages import list_pages
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: How long a watch lasts, varied so that informers do not renew theirs together.
_WATCH_SECONDS = (240, 300)
#: A watch as short as this has a bookmark after a second or two: the API server sends one two
#: seconds before the end.
_SHORT_WATCH_SECONDS = 3
#: After this long such a watch must have ended.
_SHORT_WATCH_TIMEOUT = 8.0

Key = tuple[str, str]


class ResourceEventHandler(Protocol):
    """Receives the changes that an informer sees."""

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Handle an object that was added or changed; ``raw`` is its present state."""

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Handle an object that was added or changed and cannot be read.

        Args:
            raw: its metadata, without what is nested in it, and perhaps more.
            problem: what is the matter with it, and what to do.
        """

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Handle an object that was deleted, or that the selector no longer matches.

        Args:
            key: (namespace, name).
            uid: of the object.
            metadata: of the object as last seen; None: not known, as it was away in a list.
        """


class _ResourceVersionExpired(Exception):
    """The API server no longer has the resource version to watch from."""


class Informer:
    """Lists and watches one resource and hands its changes to a handler.

    Args:
        client: with a connection to spare for the watch.
        path: of the list, such as ``/apis/taskqueue.dev/v1alpha1/tasks``.
        handler: receives the changes.
        selectors: labelSelector and fieldSelector.
        random: for delays.

    Attributes:
        handler: may be replaced while neither `run` nor `catch_up` runs.
        synced: set once the first list is complete.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        handler: ResourceEventHandler,
        *,
        selectors: Mapping[str, str] | None = None,
        random: Random | None = None,
    ) -> None:
        self._client = client
        self._path = path
        self.handler = handler
        self._selectors = dict(selectors or {})
        self._random = random or Random()  # noqa: S311  (delays, not secrets)
        self._uids: dict[Key, str] = {}
        self._version = ""
        self.synced = asyncio.Event()

    def uid_of(self, key: Key) -> str | None:
        """Return the uid of the object with this key, as last seen; None: there is none."""
        return self._uids.get(key)

    async def run(self) -> None:
        """List and watch until cancelled; no error of the API server ends it."""
        backoff = self._backoff()
        while True:
            await self._try(self._list_and_watch(), backoff)

    async def catch_up(self) -> None:
        """Return once the handler has seen everything that was written before this call.

        `run` must not run meanwhile. No error of the API server ends it.
        """
        backoff = self._backoff()
        while not await self._try(self._read_to_now(), backoff):
            pass

    def _backoff(self) -> Backoff:
        return Backoff(random=self._random.random)

    async def _try(self, step: Coroutine[Any, Any, None], backoff: Backoff) -> bool:
        """Return whether a step has ended well; if not, it is time for another."""
        try:
            await step
        except _ResourceVersionExpired:
            log.info("watch.expired", path=self._path)
            self._version = ""
        except ApiError as error:
            wait = error.retry_after or backoff.next_delay()
            log.warning(
                "watch.interrupted",
                path=self._path,
                error=str(error),
                wait_seconds=round(wait, 2),
            )
            await asyncio.sleep(wait)
        else:
            backoff.reset()
            return True
        return False

    async def _list_and_watch(self) -> None:
        if not self._version:
            await self._list()
        await self._watch(self._random.randint(*_WATCH_SECONDS))

    async def _read_to_now(self) -> None:
        if not self._version:
            await self._list()
            return
        target = await self._list(only_a_page=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHORT_WATCH_TIMEOUT):
                await self._watch(_SHORT_WATCH_SECONDS, until=target)
        if version_of({"resourceVersion": self._version}) < target:
            # Over an etcd that reports no progress (before 3.4.31 and 3.5.13) a watch without
            # events may be behind writes to other resources for as long as there is none.
            await self._list()

    async def _list(self, *, only_a_page: bool = False) -> int:
        """List everything.

        Args:
            only_a_page: read nothing if the list is longer than a page.

        Returns:
            0, or the resource version of the list that was not read.
        """
        seen: set[Key] = set()
        version = ""
        try:
            async for page in list_pages(self._client, self._path, self._selectors):
                metadata = page.content["metadata"]
                version = metadata["resourceVersion"]
                if only_a_page and metadata.get("continue") and version.isdecimal():
                    return int(version)
                for raw in page.content["items"]:
                    seen.add(self._upsert(raw, page.problem))
                del page  # before the next one is read
        except ApiError as error:
            if error.status == 410 and version:
                raise _ResourceVersionExpired from error  # the pages' snapshot
            raise
        for key in [key for key in self._uids if key not in seen]:
            self.handler.on_deleted(key, self._uids.pop(key))
        self._version = version
        self.synced.set()
        return 0

    async def _watch(self, seconds: int, *, until: int | None = None) -> None:
        """Watch for so many seconds, or until this resource version is reached."""
        events = self._client.watch(
            self._path,
            timeout_seconds=seconds,
            resourceVersion=self._version,
            allowWatchBookmarks="true",
            **self._selectors,
        )
        try:
            async with aclosing(events):
                async for event in events:
                    self._handle(event)
                    if until is not None and version_of(event["object"]["metadata"]) >= until:
                        return
        except ApiError as error:
            if error.status == 410:
                raise _ResourceVersionExpired from error
            raise

    def _handle(self, event: Mapping[str, Any]) -> None:
        kind, raw = event["type"], event["object"]
        if kind == "ERROR":
            if raw.get("code") == 410:
                raise _ResourceVersionExpired
            raise ApiError(int(raw.get("code", 0)), raw.get("reason", ""), raw.get("message", ""))
        if kind == "DELETED":
            self._remove(raw)
        elif kind != "BOOKMARK":
            self._upsert(raw, event.get("problem", ""))
        self._version = raw["metadata"]["resourceVersion"]

    def _upsert(self, raw: dict[str, Any], problem: str) -> Key:
        key, uid = identity(raw)
        before = self._uids.get(key)
        if before is not None and before != uid:
            self.handler.on_deleted(key, before)  # deleted and created again unseen
        self._uids[key] = uid
        if problem:
            self.handler.on_unreadable(raw, problem)
        else:
            self.handler.on_upserted(raw)
        return key

    def _remove(self, raw: dict[str, Any]) -> None:
        key, uid = identity(raw)
        if self._uids.get(key) == uid:
            del self._uids[key]
        self.handler.on_deleted(key, uid, raw["metadata"])


def identity(raw: Mapping[str, Any]) -> tuple[Key, str]:
    """Return ((namespace, name), uid) of an object."""
    metadata = raw["metadata"]
    return (metadata.get("namespace", ""), metadata["name"]), metadata["uid"]
