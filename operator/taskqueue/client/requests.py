"""Requests about Tasks, asked again through short outages, with errors for programs."""

from __future__ import annotations

import asyncio
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.client.access import ApiRequester
from taskqueue.client.errors import Unavailable
from taskqueue.direct.errors import ClientError, Refused
from taskqueue.kubernetes.client import ApiError

#: Answers after which the same request may succeed; 0: none came.
_PASSING = (0, 408, 429, 500, 502, 503, 504)


def passing(problem: ApiError) -> bool:
    """Tell whether the same request may succeed later, whoever asks."""
    return problem.status in _PASSING


def refusal(problem: ApiError, what: str) -> ClientError:
    """Return the error for what the API server said, for ``what`` such as ``submit Task a/b``."""
    if passing(problem):
        return Unavailable(f"cannot {what}: {problem}")
    advice = ""
    if problem.status == 401:
        advice = ": the credentials are not valid, or not any more"
    elif problem.status == 403:
        advice = (
            ": give the program's service account a role for tasks.taskqueue.dev "
            "(docs/guides/clients.md), and check the namespace"
        )
    return Refused(
        f"cannot {what}: {problem.message or problem.reason}{advice}",
        status=problem.status,
        reason=problem.reason,
    )


async def ask(
    api: ApiRequester,
    method: str,
    path: str,
    *,
    patience_seconds: float,
    body: Any = None,
    **more: Any,
) -> dict[str, Any]:
    """Send a request that may safely be repeated, again and again while the trouble may pass.

    Raises:
        ApiError: refused, or there was trouble all the time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_seconds
    backoff = Backoff()
    while True:
        try:
            return await api.request(method, path, body=body, **more)
        except ApiError as problem:
            wait = max(problem.retry_after or 0.0, backoff.next_delay())
            if not passing(problem) or loop.time() + wait > deadline:
                raise
        await asyncio.sleep(wait)
