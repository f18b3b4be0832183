"""Lists the TaskQueues that exist when an operator begins to lead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.informer import identity
from taskqueue.kubernetes.pages import Page, list_pages
from taskqueue.logs import EventLog

log = EventLog(__name__)


Put = Callable[[Mapping[str, Any]], None]


async def list_queues(client: ApiClient, paths: Iterable[str], put: Put) -> bool:
    """List all TaskQueues; no error of the API server ends it.

    Args:
        client: for the API server.
        paths: of the lists that together have all of them.
        put: called with each; raises ValueError if it cannot be read. After an error of the API
            server it is called again for those before.

    Returns:
        Whether all can be read.
    """
    answers = [await _list(client, path, put) for path in paths]
    return all(answers)


async def _list(client: ApiClient, path: str, put: Put) -> bool:
    backoff = Backoff()
    while True:
        all_read = True
        try:
            async for page in list_pages(client, path):
                all_read &= put_page(page, put)
        except ApiError as problem:
            log.warning("queue.list_failed", path=path, error=str(problem))
            await asyncio.sleep(problem.retry_after or backoff.next_delay())
        else:
            return all_read


def put_page(page: Page, put: Put) -> bool:
    """Put the TaskQueues of a page; return whether all of them can be read."""
    all_read = True
    for raw in page.content["items"]:
        try:
            if page.problem:
                raise ValueError(page.problem)
            put(raw)
        except ValueError as problem:
            all_read = False
            (namespace, name), _ = identity(raw)
            log.error("queue.parse_failed", namespace=namespace, queue=name, error=str(problem))
    return all_read
