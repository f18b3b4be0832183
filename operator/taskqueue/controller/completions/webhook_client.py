"""Posts to receivers of webhooks, and says in words of this project why one did not accept.

* A socket connects only where `WebhookNetworks` allows it, which is asked about the very address it
  is about to connect to: what a URL or a name means at another moment does not count.
* Redirects are not followed, no proxy of the environment is used, no cookie is kept.
* A receiver's words are read, so that its connection can be used again, and thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from taskqueue.controller.completions.webhook_networks import WebhookNetworks

#: Of an answer, in bytes; the connection of a longer one is closed.
_ANSWER_BYTES = 16 * 1024
#: Names looked up at once, for all webhooks: a name server that hangs keeps a thread each, and must
#: not keep those that the rest of the operator uses.
_LOOKUPS_AT_ONCE = 16
_USER_AGENT = "taskqueue-operator"


class WebhookTrouble(StrEnum):
    """Why a receiver has not accepted an event; the value is a condition's reason."""

    ADDRESS_NOT_ALLOWED = "AddressNotAllowed"
    URL_INVALID = "UrlInvalid"
    NAME_UNKNOWN = "NameUnknown"
    UNREACHABLE = "ReceiverUnreachable"
    TLS_FAILED = "TlsFailed"
    TIMED_OUT = "ReceiverTimedOut"
    REDIRECTED = "Redirected"
    REFUSED = "ReceiverRefused"


EXPLANATIONS = {
    WebhookTrouble.ADDRESS_NOT_ALLOWED: "its address is in no network that webhooks may be sent "
    "to: whoever installs the operator allows networks with TASKQUEUE_WEBHOOK_NETWORKS",
    WebhookTrouble.URL_INVALID: "its URL cannot be used: give http:// or https:// with a host, "
    "without user and password",
    WebhookTrouble.NAME_UNKNOWN: "the name in its URL has no address",
    WebhookTrouble.UNREACHABLE: "it accepts no connection, or closes it without an answer",
    WebhookTrouble.TLS_FAILED: "its certificate is not trusted, or is for another name",
    WebhookTrouble.TIMED_OUT: "it has not answered within timeoutSeconds",
    WebhookTrouble.REDIRECTED: "it redirects, which is not followed: give the address that it "
    "redirects to",
    WebhookTrouble.REFUSED: "it does not accept what is sent",
}


@dataclass(frozen=True, slots=True)
class WebhookFailure:
    """Why an event was not accepted.

    Attributes:
        trouble: what is wrong.
        status: of the answer; 0: there was none.
    """

    trouble: WebhookTrouble
    status: int = 0

    def __str__(self) -> str:
        """Return what is wrong, and what to do."""
        answer = f" (HTTP status {self.status})" if self.status else ""
        return f"{EXPLANATIONS[self.trouble]}{answer}"


class _AddressNotAllowed(OSError):
    """A socket would connect to an address that is not allowed."""


class WebhookClient:
    """Posts events; has the connections of one webhook.

    Args:
        networks: that it may connect to.
        at_once: connections.
    """

    def __init__(self, networks: WebhookNetworks, *, at_once: int) -> None:
        self._networks = networks
        connector = aiohttp.TCPConnector(
            limit=at_once, resolver=_Resolver(), socket_factory=self._make_socket
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": _USER_AGENT},
            auto_decompress=False,
            trust_env=False,
        )

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float
    ) -> WebhookFailure | None:
        """Post once; return why it was not accepted, None: it was, with a status of 200 to 299."""
        try:
            async with self._session.post(
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response:
                with contextlib.suppress(
                    asyncio.IncompleteReadError, aiohttp.ClientError, TimeoutError
                ):
                    await response.content.readexactly(_ANSWER_BYTES)
                return _judge(response.status)
        except aiohttp.InvalidURL:
            return WebhookFailure(WebhookTrouble.URL_INVALID)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return WebhookFailure(_trouble(error))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _make_socket(self, target: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = target
        if not self._networks.allow(str(address[0])):
            raise _AddressNotAllowed(f"{address[0]} is not allowed")
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Looks names up in threads of its own."""

    _threads = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="webhook names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Keep the threads: they are everybody's."""


def _judge(status: int) -> WebhookFailure | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return WebhookFailure(WebhookTrouble.REDIRECTED, status)
    return WebhookFailure(WebhookTrouble.REFUSED, status)


def _trouble(error: BaseException) -> WebhookTrouble:
    """Return what an exception of a request means, or the one that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _AddressNotAllowed):
            return WebhookTrouble.ADDRESS_NOT_ALLOWED
        if isinstance(cause, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch):
            return WebhookTrouble.TLS_FAILED
        if isinstance(cause, socket.gaierror | UnicodeError):
            return WebhookTrouble.NAME_UNKNOWN
        if isinstance(cause, TimeoutError):
            return WebhookTrouble.TIMED_OUT
        os_error = getattr(cause, "os_error", None)
        cause = os_error if os_error not in (None, cause) else cause.__cause__
    return WebhookTrouble.UNREACHABLE


def is_usable(url: str) -> bool:
    """Return whether a request can be sent to a URL: it has a scheme of HTTP, a host, no user."""
    try:
        found = URL(url)
        return (
            found.scheme in ("http", "https")
            and bool(found.host)
            and found.port is not None
            and found.user is None
            and found.password is None
        )
    except ValueError:
        return False
