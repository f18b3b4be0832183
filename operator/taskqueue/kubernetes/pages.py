"""Reads lists page by page, in pages so large that no object stops the list or fills the memory.

Contract:

* A page is read up to `OBJECT_BYTES`. One that is longer is abandoned there, and one that cannot be
  parsed is dropped. It is asked for again in halves until the object that makes it so is alone:
  some ten more requests for each. Behind it pages are as large as before.
* Pages that were too long stay smaller; they grow again while they are short.
* What cannot be read even alone is listed in outline: its metadata is, or its row of a Table.
* The API server holds one snapshot for all pages. When that has expired (410) the list is over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskqueue.kubernetes.client import (
    METADATA_LIST,
    OBJECT_BYTES,
    PROBLEMS,
    TABLE,
    TOO_LARGE,
    ApiClient,
    ApiError,
    parse,
)
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Objects in a page of a list.
PAGE = 100


class ListForm(NamedTuple):
    """What a list is asked for as.

    Attributes:
        accept: media type.
        outline: media type for an object that cannot be read so.
        levels: of this answer that are read at least.
    """

    accept: str
    outline: str
    levels: int


#: Whole objects: a list has items, an item its metadata.
OBJECTS = ListForm("application/json", METADATA_LIST, 4)
#: Rows of a Table: it has rows, a row its object, that its metadata.
ROWS = ListForm(TABLE, TABLE, 5)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list.

    Attributes:
        content: the answer: items or rows, and the metadata of the list.
        problem: why its only object is shown in outline, one of `PROBLEMS`; "": it is not.
    """

    content: dict[str, Any]
    problem: str = ""


class PageSize:
    """How many objects to ask for, after what came of the pages before.

    Args:
        most: at any time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: So many fit by their bytes.
        self._fits = most
        #: One of so many next objects has made a page unreadable; 0: none is known to.
        self._suspects = 0

    def next(self) -> int:
        """Return how many objects to ask for."""
        if not self._suspects:
            return self._fits
        return min(max(self._suspects // 2, 1), self._fits)

    def on_refused(self, asked: int, reason: str) -> None:
        """Take note that a page was too long, or could not be parsed."""
        self._suspects = asked
        if reason == TOO_LARGE:
            self._fits = max(asked // 2, 1)

    def on_read(self, asked: int, size: int) -> None:
        """Take note that a page of ``size`` bytes is done with."""
        self._suspects = max(self._suspects - asked, 0)
        if not self._suspects and asked == self._fits and 2 * size <= OBJECT_BYTES:
            self._fits = min(2 * asked, self._most)


async def list_pages(
    client: ApiClient,
    path: str,
    params: Mapping[str, str] | None = None,
    *,
    most: int = PAGE,
    form: ListForm = OBJECTS,
) -> AsyncGenerator[Page, None]:
    """Yield the pages of a list.

    Args:
        client: for the API server.
        path: of the list.
        params: selectors, say.
        most: objects in a page, at most.
        form: what to ask for.

    Raises:
        ApiError: refused or broken off; with status 410, the list has to begin again.
    """
    size, token = PageSize(most), ""
    while True:
        asked = size.next()
        query = {**(params or {}), "limit": str(asked), **({"continue": token} if token else {})}
        try:
            page = await _read(client, path, query, form, size)
        except ApiError as error:
            if error.reason not in PROBLEMS:
                raise
            if asked > 1:
                size.on_refused(asked, error.reason)
                continue
            log.warning("object.unreadable", path=path, error=str(error))
            content = await client.request(
                "GET", path, params=query, accept=form.outline, levels=form.levels
            )
            page = Page(content, PROBLEMS[error.reason])
            size.on_read(asked, OBJECT_BYTES)
        token = page.content["metadata"].get("continue", "")
        yield page
        del page  # before the next one is read
        if not token:
            return


async def _read(
    client: ApiClient, path: str, query: Mapping[str, str], form: ListForm, size: PageSize
) -> Page:
    raw = await client.send("GET", path, params=query, accept=form.accept, most_bytes=OBJECT_BYTES)
    page = Page(parse(raw, f"list of {path}"))
    size.on_read(int(query["limit"]), len(raw))
    return page
