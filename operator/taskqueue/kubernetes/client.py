"""A thin HTTP client for the API server: JSON in, JSON out, typed errors.

The kubernetes package loads addresses and credentials. Requests go straight over aiohttp, because
the status updater and the informers handle thousands a second and need connection pools of their
own. Every request has a timeout: an API server that hangs is an error like any other.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from taskqueue.exact_json import decode_own
from taskqueue.logs import EventLog

log = EventLog(__name__)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

#: Longest line of a watch, in bytes: etcd refuses objects above 1.5 MiB.
_MAX_LINE_BYTES = 8 * 1024 * 1024

#: Reason of an `ApiError` for a response that could not be parsed.
UNREADABLE = "Unreadable"


class ApiError(Exception):
    """The API server refused a request, or gave no usable response.

    Attributes:
        status: HTTP status; 0 when there was no response, or none that can be read.
        reason: machine-readable, such as NotFound or Invalid.
        message: for people.
        retry_after: how long the server asks to wait, in seconds; None: it does not say.
    """

    def __init__(
        self, status: int, reason: str, message: str, *, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{message} ({status} {reason})" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later.

        This includes 401 and 403: an API server that has just started answers so until its
        authorizer knows the roles, and a role that was removed may be restored.
        """
        return self.status in (0, 401, 403, 408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How to reach the API server: its address, TLS context and where the token comes from."""

    configuration: Configuration
    ssl_context: ssl.SSLContext | None

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
        return str(self.configuration.host).rstrip("/")

    async def headers(self) -> dict[str, str]:
        """Return the authorization header, read again when a projected token was renewed."""
        token = await self.configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": str(token)} if token else {}


async def load_access(kubeconfig: str | None = None) -> ApiAccess:
    """Find the API server: the pod's service account, or a kubeconfig outside a cluster.

    Args:
        kubeconfig: path of the file to use; default: $KUBECONFIG, then ``~/.kube/config``.

    Raises:
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = Configuration()
    if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        kubernetes_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, client_configuration=configuration
        )
    context: ssl.SSLContext | None = None
    if str(configuration.host).startswith("https"):
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    return ApiAccess(configuration=configuration, ssl_context=context)


class ApiClient:
    """Sends requests to the API server over a connection pool of its own.

    Args:
        access: address and credentials.
        max_connections: size of the pool; 0: no limit.
        timeout_seconds: of each request; a watch has a timeout of its own.
    """

    def __init__(
        self, access: ApiAccess, *, max_connections: int = 8, timeout_seconds: float = 15.0
    ) -> None:
        self._access = access
        self._base = access.base_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=access.ssl_context or False,
                limit=max_connections,
                keepalive_timeout=60,
            ),
            auto_decompress=True,
            read_bufsize=2**18,
        )

    async def close(self) -> None:
        """Close the pool; requests in flight fail."""
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Send one request and return the parsed response; arguments and errors as of `send`."""
        raw = await self.send(method, path, params=params, body=body, content_type=content_type)
        return parse(raw, f"{method} {path}") if raw else {}

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """Send one request and return the body of the response.

        Args:
            method: HTTP method.
            path: from the root, such as ``/api/v1/namespaces``.
            params: query parameters.
            body: bytes, sent as they are, or a value to encode as JSON.
            content_type: of the body.

        Raises:
            ApiError: refused, timed out or unreachable.
        """
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = await self._access.headers()
        if data is not None:
            headers["Content-Type"] = content_type
        try:
            async with self._session.request(
                method,
                self._base + path,
                params=params,
                data=data,
                headers=headers,
                timeout=self._timeout,
            ) as response:
                raw = await response.read()
                if response.status >= 400:
                    raise _error(response, raw)
                return raw
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(
                0, "Unreachable", f"API server at {self._base}: {error!r} on {method} {path}"
            ) from error

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        """GET an object or a list."""
        return await self.request("GET", path, params=params or None)

    async def apply(self, path: str, body: Any, *, manager: str) -> dict[str, Any]:
        """Server-side apply ``body`` as field manager ``manager``, also over conflicts."""
        return await self.request(
            "PATCH",
            path,
            params={"fieldManager": manager, "force": "true"},
            body=body,
            content_type=APPLY_PATCH,
        )

    async def merge(self, path: str, body: Any) -> dict[str, Any]:
        """Apply ``body`` as a JSON merge patch."""
        return await self.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def watch(
        self, path: str, *, timeout_seconds: int, **params: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield watch events until the server ends the watch.

        An event that cannot be parsed is logged and skipped: one bad object does not stop the rest.

        Raises:
            ApiError: refused, or the connection broke.
        """
        # The server ends a watch after timeoutSeconds; one that stays silent longer is dead.
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout_seconds + 15)
        query = {"watch": "1", "timeoutSeconds": str(timeout_seconds), **params}
        try:
            async with self._session.get(
                self._base + path, params=query, headers=await self._access.headers(), timeout=limit
            ) as response:
                if response.status >= 400:
                    raise _error(response, await response.read())
                async for line in _lines(response.content):
                    try:
                        event = parse(line, f"watch of {path}")
                    except ApiError as error:
                        log.error("event.skipped", path=path, error=str(error), bytes=len(line))
                        continue
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(
                0, "Unreachable", f"API server at {self._base}: {error!r} on watch of {path}"
            ) from error


def parse(raw: bytes, request: str) -> dict[str, Any]:
    """Parse a response; ``request`` names what it answers.

    Raises:
        ApiError: with reason `UNREADABLE`.
    """
    try:
        parsed: dict[str, Any] = decode_own(raw)
    except ValueError as error:
        raise ApiError(0, UNREADABLE, f"response to {request} is not JSON: {error}") from error
    return parsed


def version_of(metadata: Mapping[str, Any]) -> int:
    """Return an object's resourceVersion: a growing number in Kubernetes's API server; else 0."""
    version = str(metadata.get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of up to `_MAX_LINE_BYTES`; aiohttp's own limit is 128 KiB."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > _MAX_LINE_BYTES:
            raise ApiError(0, "TooLarge", f"a watch event is longer than {_MAX_LINE_BYTES} bytes")


def _error(response: aiohttp.ClientResponse, raw: bytes) -> ApiError:
    try:
        status = decode_own(raw)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except ValueError:
        reason, message = response.reason or "", raw[:500].decode(errors="replace")
    after = response.headers.get("Retry-After", "")
    return ApiError(
        response.status,
        reason,
        message or f"HTTP {response.status}",
        retry_after=float(after) if after.isdigit() else None,
    )
