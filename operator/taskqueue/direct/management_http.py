"""Asks RabbitMQ's management API: bounded in time and bytes, and quoting nothing that it answers.

The address is in a Secret of whoever may create TaskQueues, so anything may listen there: a service
of others, which must not be read by way of a condition, or one that answers without end. A request
follows no redirect, its answer is parsed beside the event loop, and errors have texts of this
module only, and the number of the HTTP status. No error shows credentials.

Only the operator uses it; workers never import this.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from taskqueue.amqp.connection import tls_context
from taskqueue.amqp.parameters import MANAGEMENT_URI, BrokerConfigurationError, ManagementEndpoint
from taskqueue.exact_json import decode

#: Time limit of a request.
REQUEST_SECONDS = 5.0
#: Largest answer to one request; a page of 500 queues with the longest names has some 200 kB.
MAX_BYTES = 1024 * 1024

_NOT_MANAGEMENT = "check that the address is RabbitMQ's management API"


class ManagementError(Exception):
    """The endpoint gave no usable answer.

    Attributes:
        text: why, and what to do; it names neither the endpoint nor what it is for.
        status: of the HTTP answer; 0: there was none.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class ManagementClient:
    """Sends requests to one endpoint, one at a time.

    Args:
        endpoint: where it is, and as whom.
    """

    def __init__(self, endpoint: ManagementEndpoint) -> None:
        self.endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def get(self, *path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return what the JSON of an answer says.

        Args:
            path: its parts after ``/api``, not encoded.
            query: parameters.

        Raises:
            ManagementError: there is no usable answer.
        """
        answer = await self._ask("GET", path, query, None)
        try:
            return await asyncio.to_thread(decode, answer)
        except ValueError:
            raise ManagementError(f"unexpected answer: it is not JSON: {_NOT_MANAGEMENT}") from None

    async def put(self, *path: str, body: Mapping[str, Any]) -> None:
        """Create or replace what the path names; arguments and errors as of `get`."""
        await self._ask("PUT", path, None, body)

    async def delete(self, *path: str) -> None:
        """Delete what the path names, if it is there; arguments and errors as of `get`."""
        try:
            await self._ask("DELETE", path, None, None)
        except ManagementError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    async def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
    ) -> bytes:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await self._send(method, path, query, body)
        except TimeoutError:
            raise ManagementError(
                f"no answer within {REQUEST_SECONDS:g} s: check host, port and network policies"
            ) from None
        except BrokerConfigurationError as problem:
            raise ManagementError(str(problem)) from None
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise ManagementError(_explain(problem)) from None

    async def _send(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
    ) -> bytes:
        if self._session is None:
            self._session = self._open()
        url = "/".join([f"{self.endpoint.url}/api", *(quote(part, safe="") for part in path)])
        if query:
            url += f"?{urlencode(query)}"
        data = None if body is None else orjson.dumps(body)
        async with self._session.request(method, url, data=data, allow_redirects=False) as response:
            if not 200 <= response.status < 300:
                raise ManagementError(_refusal(response.status), response.status)
            if method == "GET" and response.content_type != "application/json":
                raise ManagementError(
                    f"unexpected answer: its type is not application/json: {_NOT_MANAGEMENT}"
                )
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > MAX_BYTES:
                    raise ManagementError(
                        f"unexpected answer: it has more than {MAX_BYTES} bytes: {_NOT_MANAGEMENT}"
                    )
            return bytes(answer)

    def _open(self) -> aiohttp.ClientSession:
        endpoint = self.endpoint
        login = aiohttp.encode_basic_auth(endpoint.username, endpoint.password)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls_context(endpoint.broker) if endpoint.url.startswith("https:") else True,
                limit=1,
            ),
            headers={
                "Accept-Encoding": "identity",
                "Authorization": login,
                "Content-Type": "application/json",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )


def _refusal(status: int) -> str:
    """Return what a status means that is no success; its number only, never its text."""
    if 300 <= status < 400:
        return (
            f"answered {status}: a redirect is not followed: write into {MANAGEMENT_URI} where it "
            "leads to"
        )
    return f"answered {status}: {_NOT_MANAGEMENT}"


def _explain(problem: Exception) -> str:
    """Return what a failed request means, without a word of what the other side sent."""
    cause = getattr(problem, "os_error", None) or getattr(problem, "certificate_error", None)
    match cause or problem:
        case ssl.SSLCertVerificationError() as untrusted:
            return (
                "the certificate is not trusted: put its authority into ca.crt and use a host name "
                f"the certificate has ({untrusted.verify_message})"
            )
        case ssl.SSLError():
            return "TLS failed: check that the port speaks TLS"
        case ConnectionRefusedError():
            return "nothing listens there: check host and port, and whether the plugin is enabled"
        case socket.gaierror() as unknown:
            return f"the host name cannot be resolved: check host ({unknown.strerror})"
        case aiohttp.ClientResponseError():
            return f"unexpected answer: it is not HTTP: {_NOT_MANAGEMENT}"
        case _:
            return f"the connection failed ({type(problem).__name__}): check host, port and scheme"
