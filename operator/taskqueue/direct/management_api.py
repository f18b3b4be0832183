"""The broker's own statistics of its queues, read from its management API.

One read asks for all of the operator's queues in a virtual host at once. Whatever the answer does
not include is unknown, never zero: a queue has no statistics for up to 10 s after it was declared,
nor has any queue for as long after the broker has started.

A read is bounded in time and in bytes, and follows no redirect. No error shows credentials. Only
the operator reads statistics; workers never import this.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from taskqueue.amqp.connection import tls_context
from taskqueue.amqp.parameters import MANAGEMENT_URI, BrokerConfigurationError, StatisticsEndpoint
from taskqueue.contract.names import work_queue
from taskqueue.exact_json import decode
from taskqueue.model.queue_stats import QueueStats

#: Time limit of a read.
READ_SECONDS = 5.0
#: Largest answer to one request; a page has some 50 kB.
MAX_BYTES = 8 * 1024 * 1024
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

    def __init__(self, endpoint: StatisticsEndpoint) -> None:
        self._endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None
        self._disabled = False

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

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
        except BrokerConfigurationError as problem:
            raise self._unreadable(str(problem)) from None
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise self._unreadable(_explain(problem)) from None

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
        path = f"/api/queues/{quote(self._endpoint.broker.virtual_host, safe='')}"
        query = {
            "columns": "name,state,messages_ready,messages_unacknowledged",
            "name": f"^{re.escape(_PREFIX)}",
            "use_regex": "true",
            "page": str(page),
            "page_size": str(_PAGE_SIZE),
        }
        if self._disabled:
            query |= {"disable_stats": "true", "enable_queue_totals": "true"}
        answer = self._parse(await self._get(path, query))
        items, pages = answer.get("items"), answer.get("page_count")
        if not isinstance(items, list) or not isinstance(pages, int):
            raise self._not_management()
        return items, pages

    async def _is_disabled(self) -> bool:
        """Return whether the broker keeps no statistics of queues; it has totals all the same.

        Totals are used only then: they show 0 for what is not known yet.
        """
        answer = await self._get("/api/overview", {"columns": "disable_stats"})
        return self._parse(answer).get("disable_stats") is True

    def _parse(self, answer: bytes) -> dict[str, Any]:
        try:
            parsed = decode(answer)
        except ValueError:
            raise self._not_management() from None
        if not isinstance(parsed, dict):
            raise self._not_management()
        return parsed

    def _not_management(self) -> StatisticsUnreadable:
        return self._unreadable(
            "the answer is not a list of queues: check that the address is RabbitMQ's management "
            "API"
        )

    async def _get(self, path: str, query: Mapping[str, str]) -> bytes:
        if self._session is None:
            self._session = self._open()
        url = f"{self._endpoint.url}{path}?{urlencode(query)}"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise self._unreadable(self._refusal(response))
            if response.content_type != "application/json":
                raise self._unreadable(
                    f"answered {response.content_type}, not application/json: check that the "
                    "address is RabbitMQ's management API"
                )
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise self._unreadable(
                        f"the answer has more than {MAX_BYTES} bytes: check that the address is "
                        "RabbitMQ's management API"
                    )
            return bytes(body)

    def _open(self) -> aiohttp.ClientSession:
        endpoint = self._endpoint
        login = aiohttp.encode_basic_auth(endpoint.username, endpoint.password)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls_context(endpoint.broker) if endpoint.url.startswith("https:") else True,
                limit=1,
            ),
            headers={"Accept-Encoding": "identity", "Authorization": login},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def _refusal(self, response: aiohttp.ClientResponse) -> str:
        status = response.status
        said = f"answered {status} {response.reason or ''}".rstrip()
        if status in (401, 403):
            return (
                f"{said}: check the password of user {self._endpoint.username}, and give that user "
                "the tag management and permissions on the virtual host"
            )
        if status == 404:
            return (
                f"{said}: check the address, and that the virtual host "
                f"{self._endpoint.broker.virtual_host} exists"
            )
        if 300 <= status < 400:
            return (
                f"{said}: a redirect is not followed: write into {MANAGEMENT_URI} where it leads to"
            )
        return f"{said}: check what serves that address"

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


def _explain(problem: Exception) -> str:
    """Return what a failed request means; texts of aiohttp have addresses, no credentials."""
    cause = getattr(problem, "os_error", None) or getattr(problem, "certificate_error", None)
    match cause or problem:
        case ssl.SSLCertVerificationError() as untrusted:
            return (
                "the certificate is not trusted: put its authority into ca.crt and use a host name "
                f"the certificate has ({untrusted.verify_message})"
            )
        case ssl.SSLError() as failed:
            return f"TLS failed: check that the port speaks TLS ({failed.reason or failed})"
        case ConnectionRefusedError():
            return "nothing listens there: check host and port, and whether the plugin is enabled"
        case socket.gaierror() as unknown:
            return f"the host name cannot be resolved: check host ({unknown.strerror})"
        case _:
            return f"the connection failed: check host, port and scheme ({problem!r})"
