"""A feed of objects: list, then watch, for ever; for resources that come by tens of thousands.

Contract:

* `ResourceEventHandler.on_upserted` is called for every object added or changed,
  `ResourceEventHandler.on_deleted` for every object that left: deleted, or no longer matched by
  the selector. The two look the same here; who needs to know reads the object.
* Both are called from the feed's own task, in the order of the API server, and must not block.
* After a break the feed watches on from where it was. When the API server has forgotten that
  place (410), it lists again, and what it had seen before and is not in the list counts as deleted.
* `Informer.synced` is set once the first list was delivered whole.
* An object that cannot be parsed (nested deeper than any parser goes) is logged and left out.

Bookmarks keep the place fresh on quiet resources. A list comes in pages, so that neither side
holds it all at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from random import Random
from typing import Any, Protocol

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import UNREADABLE, ApiClient, ApiError, parse
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Objects a page of a list.
_PAGE = 100
#: A watch is renewed after this long, varied so that feeds do not renew together.
_WATCH_SECONDS = (240, 300)

_METADATA = re.compile(r'"(continue|resourceVersion)":"([^"]*)"')

Key = tuple[str, str]


class ResourceEventHandler(Protocol):
    """Who is told what the feed sees."""

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take an object as the API server has it now."""

    def on_deleted(self, key: Key, uid: str) -> None:
        """Take note that (namespace, name) with this uid left the feed."""


class _Expired(Exception):
    """The API server no longer knows the place we wanted to watch from."""


class Informer:
    """See the module's contract.

    Args:
        client: needs a connection of its own for the watch.
        path: of the list, such as ``/apis/taskqueue.dev/v1alpha1/tasks``.
        listener: who is told.
        selectors: labelSelector and fieldSelector.
        random: for the pauses.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        listener: ResourceEventHandler,
        *,
        selectors: Mapping[str, str] | None = None,
        random: Random | None = None,
    ) -> None:
        self._client = client
        self._path = path
        self._listener = listener
        self._selectors = dict(selectors or {})
        self._random = random or Random()  # noqa: S311  (pauses, not secrets)
        self._held: dict[Key, str] = {}
        self._version = ""
        self.synced = asyncio.Event()

    def uid_of(self, key: Key) -> str | None:
        """Return the uid of the object shown under a name; None: none is."""
        return self._held.get(key)

    async def run(self) -> None:
        """Feed until cancelled; no error of the API server ends it."""
        backoff = Backoff(random=self._random.random)
        while True:
            try:
                if not self._version:
                    await self._list()
                    self.synced.set()
                await self._watch()
                backoff.reset()
            except _Expired:
                log.info("feed.expired", path=self._path)
                self._version = ""
            except ApiError as problem:
                wait = problem.retry_after or backoff.next_delay()
                log.warning(
                    "feed.interrupted",
                    path=self._path,
                    problem=str(problem),
                    wait_seconds=round(wait, 2),
                )
                await asyncio.sleep(wait)

    async def _list(self) -> None:
        seen: set[Key] = set()
        token, limit = "", _PAGE
        while True:
            params = {"limit": str(limit), **self._selectors}
            if token:
                params["continue"] = token
            try:
                page = await self._page(params, alone=limit == 1)
            except ApiError as problem:
                if problem.status == 410 and token:
                    token, limit, seen = "", _PAGE, set()  # the pages' snapshot expired
                elif problem.reason == UNREADABLE and limit > 1:
                    limit = 1  # one by one, to leave out the one that cannot be read
                else:
                    raise
                continue
            for raw in page["items"]:
                seen.add(self._upsert(raw))
            token = page["metadata"].get("continue", "")
            if not token:
                break
        for key in [key for key in self._held if key not in seen]:
            self._listener.on_deleted(key, self._held.pop(key))
        self._version = page["metadata"]["resourceVersion"]

    async def _page(self, params: Mapping[str, str], *, alone: bool) -> dict[str, Any]:
        """Return a page; one of a single object that cannot be read comes without it."""
        raw = await self._client.send("GET", self._path, params=params)
        try:
            return parse(raw, f"list of {self._path}")
        except ApiError as problem:
            if not alone:
                raise
            log.error("list.unreadable", path=self._path, problem=str(problem), bytes=len(raw))
            # A list is written with its metadata after its items.
            tail = raw[raw.rindex(b'"metadata":{') :]
            return {"items": [], "metadata": dict(_METADATA.findall(tail.decode(errors="replace")))}

    async def _watch(self) -> None:
        events = self._client.watch(
            self._path,
            timeout_seconds=self._random.randint(*_WATCH_SECONDS),
            resourceVersion=self._version,
            allowWatchBookmarks="true",
            **self._selectors,
        )
        try:
            async for event in events:
                kind, raw = event["type"], event["object"]
                if kind == "ERROR":
                    if raw.get("code") == 410:
                        raise _Expired
                    raise ApiError(
                        int(raw.get("code", 0)), raw.get("reason", ""), raw.get("message", "")
                    )
                if kind == "DELETED":
                    self._remove(raw)
                elif kind != "BOOKMARK":
                    self._upsert(raw)
                self._version = raw["metadata"]["resourceVersion"]
        except ApiError as problem:
            if problem.status == 410:
                raise _Expired from problem
            raise

    def _upsert(self, raw: dict[str, Any]) -> Key:
        key, uid = identity(raw)
        before = self._held.get(key)
        if before is not None and before != uid:
            self._listener.on_deleted(key, before)  # deleted and made again while we looked away
        self._held[key] = uid
        self._listener.on_upserted(raw)
        return key

    def _remove(self, raw: dict[str, Any]) -> None:
        key, uid = identity(raw)
        if self._held.get(key) == uid:
            del self._held[key]
        self._listener.on_deleted(key, uid)


def identity(raw: Mapping[str, Any]) -> tuple[Key, str]:
    """Return ((namespace, name), uid) of an object."""
    metadata = raw["metadata"]
    return (metadata.get("namespace", ""), metadata["name"]), metadata["uid"]
