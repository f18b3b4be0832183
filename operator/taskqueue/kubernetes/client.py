"""A thin HTTP client for the API server: JSON in, JSON out, typed errors.

Answers are read up to a number of bytes. What is longer, or nested deeper than the parser goes, is
an error with a reason of `PROBLEMS`; of such an answer the upper levels can be had all the same.

The kubernetes package loads addresses and credentials. Requests go straight over aiohttp, because
the status updater and the informers handle thousands a second and need connection pools of their
own. Every request has a timeout: an API server that hangs is an error like any other.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import aiohttp
import orjson
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from taskqueue.exact_json import decode_outline, decode_own
from taskqueue.logs import EventLog

log = EventLog(__name__)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

#: What can be asked for instead of whole objects.
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"

#: Longest answer that is read at all, in bytes: the pods of a large pool come in one.
ANSWER_BYTES = 64 * 1024 * 1024
#: Longest page of a list, and longest event of a watch, in bytes. etcd refuses objects above
#: 1.5 MiB, and the values that Python makes of JSON may take 35 times as much memory.
OBJECT_BYTES = 2 * 1024 * 1024

#: Reasons of an `ApiError` for a response that could not be parsed, or was too long.
UNREADABLE, TOO_LARGE = "Unreadable", "TooLarge"
#: What is the matter with an object that is answered so, and what to do.
PROBLEMS: Mapping[str, str] = {
    UNREADABLE: "it is nested too deep: flatten it",
    TOO_LARGE: f"it has more than {OBJECT_BYTES // 1024} KiB: keep the data elsewhere",
}

#: How long a watch may be without a line; then its connection may be dead, which nothing else says.
#: A watch with bookmarks has a line each minute.
WATCH_SILENCE_SECONDS = 75.0

#: Reason of an `ApiError` for a write that was not sent, because another process may lead.
NOT_LEADING = "NotLeading"


class ErrorKind(Enum):
    """What an `ApiError` means for whoever would send the same request again."""

    #: The server, or the way to it, is not ready: that says nothing of the request.
    UNAVAILABLE = auto()
    #: The server asks to be asked less.
    THROTTLED = auto()
    #: The same request may succeed later.
    TRANSIENT = auto()
    #: It never will.
    FINAL = auto()


_UNAVAILABLE = frozenset({0, 401, 407, 408, 425})
_FINAL = frozenset({400, 404, 405, 406, 410, 411, 413, 414, 415, 422, 431})
#: What etcd and its client say of an object that is too large, whatever status that comes with.
_TOO_LARGE = re.compile(r"request is too large|message larger than max")


def kind_of(status: int, message: str) -> ErrorKind:
    """Return what an unsuccessful answer means.

    A refusal that is taken for a passing one costs a request now and then; the reverse loses what
    was to be written. So what is not known is transient. So are 401 and 403: an API server that has
    just started answers so until its authorizer knows the roles, and a role that was removed may
    be restored.

    Args:
        status: HTTP status; 0: no answer, or none that can be read.
        message: of the answer.
    """
    if status in _FINAL or (status and _TOO_LARGE.search(message)):
        return ErrorKind.FINAL
    if status == 429:
        return ErrorKind.THROTTLED
    if status in _UNAVAILABLE or status > 501:
        return ErrorKind.UNAVAILABLE
    return ErrorKind.TRANSIENT


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
    def kind(self) -> ErrorKind:
        """What the error means for whoever would send the same request again."""
        return kind_of(self.status, self.message)

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind is not ErrorKind.FINAL


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
        may_write: asked before each request that is not a GET. A process that was paused wakes up
            with writes that wait, or are to be retried, and may not lead any more.
    """

    def __init__(
        self,
        access: ApiAccess,
        *,
        max_connections: int = 8,
        timeout_seconds: float = 15.0,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._access = access
        self._may_write = may_write
        self._base = access.base_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=access.ssl_context or False,
                limit=max_connections,
                keepalive_timeout=60,
            ),
            # A few bytes of a compressed answer may be any number of bytes of JSON.
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
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
        accept: str = "application/json",
        levels: int | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the parsed response; other arguments and errors as of `send`.

        Args:
            method: HTTP method.
            path: from the root.
            params: query parameters.
            body: bytes, or a value to encode.
            content_type: of the body.
            accept: what to answer with.
            levels: of an answer that cannot be parsed as a whole, return as many levels; None:
                raise.

        Raises:
            ApiError: as of `send`, or with reason `UNREADABLE`.
        """
        raw = await self.send(
            method, path, params=params, body=body, content_type=content_type, accept=accept
        )
        return parse(raw, f"{method} {path}", levels=levels) if raw else {}

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        most_bytes: int = ANSWER_BYTES,
    ) -> bytes:
        """Send one request and return the body of the response.

        Args:
            method: HTTP method.
            path: from the root, such as ``/api/v1/namespaces``.
            params: query parameters.
            body: bytes, sent as they are, or a value to encode as JSON.
            content_type: of the body.
            accept: what to answer with.
            most_bytes: of the answer; the rest of a longer one is not read.

        Raises:
            ApiError: refused, timed out, unreachable, with reason `TOO_LARGE`, or not sent
                (`NOT_LEADING`).
        """
        if method != "GET" and not self._may_write():
            raise ApiError(
                0,
                NOT_LEADING,
                f"{method} {path} is not sent: the operator's Lease was not renewed in time, so "
                "another operator may lead; whoever leads does what is due",
            )
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Accept": accept, **await self._access.headers()}
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
                raw, whole = await _read(response, most_bytes)
                if response.status >= 400:
                    raise _error(response, raw)
                if not whole:
                    raise ApiError(
                        0, TOO_LARGE, f"response to {method} {path} is above {most_bytes} bytes"
                    )
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
        """Yield watch events until the server ends the watch, or is silent for too long.

        One bad object does not stop the rest. An event that cannot be parsed, or is longer than
        `OBJECT_BYTES`, has a ``problem``, one of `PROBLEMS`, and what is nested in the metadata,
        the spec and the status of its object is left out; if not even its name can be read, it is
        logged and skipped.

        After `WATCH_SILENCE_SECONDS` the caller starts another watch, as after any end. A server
        that owes no line, because nobody asked for bookmarks or it has seen no change since its
        start, only costs that request.

        Raises:
            ApiError: refused, or the connection broke.
        """
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SILENCE_SECONDS)
        query = {"watch": "1", "timeoutSeconds": str(timeout_seconds), **params}
        try:
            async with self._session.get(
                self._base + path, params=query, headers=await self._access.headers(), timeout=limit
            ) as response:
                if response.status >= 400:
                    raise _error(response, (await _read(response, ANSWER_BYTES))[0])
                async for line, whole in _lines(response.content):
                    event = _event(line, whole=whole, path=path)
                    if event is not None:
                        yield event
        except aiohttp.SocketTimeoutError:
            log.info("watch.silent", path=path, seconds=WATCH_SILENCE_SECONDS)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(
                0, "Unreachable", f"API server at {self._base}: {error!r} on watch of {path}"
            ) from error


def parse(raw: bytes, request: str, *, levels: int | None = None) -> dict[str, Any]:
    """Parse a response; ``request`` names what it answers, ``levels`` is as of `request`.

    Raises:
        ApiError: with reason `UNREADABLE`.
    """
    try:
        parsed = decode_own(raw) if levels is None else decode_outline(raw, levels)
    except ValueError as error:
        raise ApiError(0, UNREADABLE, f"response to {request} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ApiError(0, UNREADABLE, f"response to {request} is no JSON object")
    return parsed


def version_of(metadata: Mapping[str, Any]) -> int:
    """Return an object's resourceVersion: a growing number in Kubernetes's API server; else 0."""
    version = str(metadata.get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


async def _read(response: aiohttp.ClientResponse, most_bytes: int) -> tuple[bytes, bool]:
    """Return a body, or its beginning if it is longer, and whether it is whole."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > most_bytes:
            response.close()  # with its connection: the rest would have to be read otherwise
            return bytes(body[:most_bytes]), False
    return bytes(body), True


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the lines of a stream, and whether each is whole: of a longer one its beginning."""
    line = bytearray()
    async for chunk in stream.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            _extend(line, end)
            if line:
                yield bytes(line[:OBJECT_BYTES]), len(line) <= OBJECT_BYTES
            line.clear()
        _extend(line, rest)


def _extend(line: bytearray, part: bytes) -> None:
    line += part[: OBJECT_BYTES + 1 - len(line)]


#: An event has its type and its object, the object its metadata, spec and status.
_EVENT_LEVELS = 3
#: Of this metadata no object is without.
_IDENTITY = {"name", "uid", "resourceVersion"}


def _event(line: bytes, *, whole: bool, path: str) -> dict[str, Any] | None:
    """Return a watch event, or as much of it as can be read; None: it is skipped."""
    problem = PROBLEMS[TOO_LARGE]
    if whole:
        try:
            event: dict[str, Any] = decode_own(line)
            return event
        except ValueError:
            problem = PROBLEMS[UNREADABLE]
    try:
        event = decode_outline(line, _EVENT_LEVELS) | {"problem": problem}
        if event["object"]["metadata"].keys() >= _IDENTITY:
            return event
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    log.error("event.skipped", path=path, error=problem, bytes=len(line))
    return None


def _error(response: aiohttp.ClientResponse, raw: bytes) -> ApiError:
    try:
        status = decode_own(raw)
    except ValueError:
        status = None
    if isinstance(status, dict):
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    else:  # of something between here and the API server
        reason, message = response.reason or "", raw[:500].decode(errors="replace")
    after = response.headers.get("Retry-After", "")
    return ApiError(
        response.status,
        reason,
        message or f"HTTP {response.status}",
        retry_after=float(after) if after.isdecimal() else None,
    )
