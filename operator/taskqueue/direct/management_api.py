"""The broker's own statistics of its queues, read from its management API.

One read asks for all of the operator's queues in a virtual host at once. Whatever the answer does
not include is unknown, never zero: a queue has no statistics for up to 10 s after it was declared,
nor has any queue for as long after the broker has started.

A read is bounded in time and in bytes; `taskqueue.direct.management_http` says what else holds for
an endpoint that others chose. Only the operator reads statistics; workers never import this.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from taskqueue.amqp.parameters import MANAGEMENT_URI, ManagementEndpoint
from taskqueue.contract.names import work_queue
from taskqueue.direct.management_http import ManagementClient, ManagementError
from taskqueue.model.queue_stats import QueueStats

#: Time limit of a read, with all of its requests.
READ_SECONDS = 5.0
#: Most queues in one page (RabbitMQ's own limit), and most pages.
_PAGE_SIZE = 500
_MAX_PAGES = 20

#: What the names of all work queues begin with.
_PREFIX = work_queue("", "").removesuffix(".")


class StatisticsUnreadable(Exception):
    """The endpoint could not be read; the text names its address, why, and what to do."""


class StatisticsClient:
    """Reads one endpoint.

    Args:
        endpoint: where it is, and as whom.
    """

    def __init__(self, endpoint: ManagementEndpoint) -> None:
        self._endpoint = endpoint
        self._client = ManagementClient(endpoint)
        self._disabled = False

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def read(self) -> Mapping[str, QueueStats]:
        """Return the statistics by broker queue; a queue without any is left out.

        Raises:
            StatisticsUnreadable: try again later.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._read_pages()
        except TimeoutError:
            raise self._unreadable(
                f"no answer within {READ_SECONDS:g} s: check host, port and network policies"
            ) from None
        except ManagementError as problem:
            raise self._unreadable(self._refusal(problem)) from None

    async def _read_pages(self) -> Mapping[str, QueueStats]:
        found: dict[str, QueueStats] = {}
        listed = 0
        for page in range(1, _MAX_PAGES + 1):
            items, pages = await self._page(page)
            listed += len(items)
            for item in items:
                stats = _read_item(item)
                if stats is not None:
                    found[item["name"]] = stats
            if page >= pages:
                break
        else:
            raise self._unreadable(
                f"more than {_MAX_PAGES * _PAGE_SIZE} queues: spread them over virtual hosts"
            )
        if listed and not found and not self._disabled:
            self._disabled = await self._is_disabled()
        return found

    async def _page(self, page: int) -> tuple[list[Any], int]:
        """Return the queues of a page, and how many pages there are."""
        query = {
            "columns": "name,state,messages_ready,messages_unacknowledged",
            "name": f"^{re.escape(_PREFIX)}",
            "use_regex": "true",
            "page": str(page),
            "page_size": str(_PAGE_SIZE),
        }
        if self._disabled:
            query |= {"disable_stats": "true", "enable_queue_totals": "true"}
        answer = await self._client.get("queues", self._endpoint.broker.virtual_host, query=query)
        items = answer.get("items") if isinstance(answer, dict) else None
        pages = answer.get("page_count") if isinstance(answer, dict) else None
        if not isinstance(items, list) or not isinstance(pages, int):
            raise self._unreadable(
                "the answer is not a list of queues: check that the address is RabbitMQ's "
                "management API"
            )
        return items, pages

    async def _is_disabled(self) -> bool:
        """Return whether the broker keeps no statistics of queues; it has totals all the same.

        Totals are used only then: they show 0 for what is not known yet.
        """
        answer = await self._client.get("overview", query={"columns": "disable_stats"})
        return isinstance(answer, dict) and answer.get("disable_stats") is True

    def _refusal(self, problem: ManagementError) -> str:
        if problem.status in (401, 403):
            return (
                f"answered {problem.status}: check the password of user {self._endpoint.username}, "
                "and give that user the tag management and permissions on the virtual host"
            )
        if problem.status == 404:
            return (
                "answered 404: check the address, and that the virtual host "
                f"{self._endpoint.broker.virtual_host} exists"
            )
        return problem.text

    def _unreadable(self, why: str) -> StatisticsUnreadable:
        where = f"the broker's statistics at {self._endpoint.url} ({MANAGEMENT_URI})"
        return StatisticsUnreadable(f"{where} cannot be read: {why}")


def _read_item(item: Any) -> QueueStats | None:
    """Return the statistics in an item of the list; None: none that are reliable."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    if item.get("state") not in (None, "running"):
        return None  # its leader is unavailable: the numbers are old
    ready, unacknowledged = item.get("messages_ready"), item.get("messages_unacknowledged")
    if type(ready) is not int or type(unacknowledged) is not int:
        return None
    return QueueStats(ready=max(ready, 0), unacknowledged=max(unacknowledged, 0))
