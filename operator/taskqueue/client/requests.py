"""Sends requests about Tasks, retries them through short outages, and converts their errors."""

from __future__ import annotations

import asyncio
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.client.errors import QuotaExceeded, Unavailable
from taskqueue.direct.errors import ClientError, Refused
from taskqueue.kubernetes.client import ApiClient, ApiError

#: HTTP statuses after which the same request may succeed; 0: there was no response.
_TRANSIENT = (0, 408, 429, 500, 502, 503, 504)


def is_transient(error: ApiError) -> bool:
    """Return whether the same request may succeed within seconds without any change."""
    # The API server counts for a ResourceQuota with a write of that, which another may overtake;
    # of a new quota it does not know yet what is used.
    quota = (409, "on resourcequotas "), (403, "status unknown for quota")
    return error.status in _TRANSIENT or any(
        error.status == status and text in error.message for status, text in quota
    )


def is_quota_exceeded(error: ApiError) -> bool:
    """Return whether a ResourceQuota leaves no room for another object."""
    return error.status == 403 and "exceeded quota: " in error.message


def client_error(error: ApiError, action: str) -> ClientError:
    """Return the error to raise to the program; ``action`` is such as ``submit Task a/b``."""
    if is_transient(error):
        return Unavailable(f"cannot {action}: {error}")
    if is_quota_exceeded(error):
        return QuotaExceeded(
            f"cannot {action}: {error.message}: submit it again later, let finished Tasks be "
            "deleted (ttlSecondsAfterFinished), or have the quota raised (docs/guides/quotas.md)",
            status=error.status,
            reason=error.reason,
        )
    advice = ""
    if error.status == 401:
        advice = ": the credentials are not valid, or have expired"
    elif error.status == 403:
        advice = (
            ": give the program's service account a role for tasks.taskqueue.dev "
            "(docs/guides/clients.md), and check the namespace"
        )
    return Refused(
        f"cannot {action}: {error.message or error.reason}{advice}",
        status=error.status,
        reason=error.reason,
    )


async def request_with_retries(
    api: ApiClient,
    method: str,
    path: str,
    *,
    patience_seconds: float,
    body: Any = None,
    **more: Any,
) -> dict[str, Any]:
    """Send a request that may safely be repeated; retry it while its errors are transient.

    Raises:
        ApiError: refused, or not successful within ``patience_seconds``.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_seconds
    backoff = Backoff()
    while True:
        try:
            return await api.request(method, path, body=body, **more)
        except ApiError as error:
            wait = max(error.retry_after or 0.0, backoff.next_delay())
            if not is_transient(error) or loop.time() + wait > deadline:
                raise
        await asyncio.sleep(wait)
