"""What is checked of each request before anything is done for it.

* The host, on a desk: a page of another site must not reach the gateway under a name of its own.
* The site it comes from: a browser sends along what it has, also for another site's page.
* How many requests this caller has sent, by its token, or by its address without one.
* The body: its length, its content type, and that it arrives in time. It is read here as a whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskqueue.gateway.problems import MEDIA_TYPE, Problem
from taskqueue.gateway.settings import GatewaySettings

#: Callers whose requests are counted; the one that was silent for longest is forgotten.
_CALLERS = 10_000

#: How long a body may take.
_BODY_SECONDS = 30.0

_SAFE = ("GET", "HEAD", "OPTIONS")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_PROBES = ("/healthz", "/readyz")


@dataclass(slots=True)
class _Bucket:
    tokens: float
    since: float


class RateLimit:
    """Counts requests: a token bucket for each caller.

    Args:
        per_second: how many come back in a second.
        burst: how many a bucket holds.
        clock: seconds from any start.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    def wait_of(self, caller: bytes) -> float:
        """Count a request; return 0, or how many seconds the caller has to wait instead."""
        now = self._clock()
        bucket = self._buckets.pop(caller, None) or _Bucket(self._burst, now)
        self._buckets[caller] = bucket
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        gained = (now - bucket.since) * self._per_second
        bucket.tokens, bucket.since = min(bucket.tokens + gained, self._burst), now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._per_second
        bucket.tokens -= 1
        return 0.0


class Guards:
    """An ASGI application in front of another.

    Args:
        app: the other.
        settings: the limits.
        desk: whether the gateway serves one person on his own machine.
        clock: seconds from any start.
    """

    def __init__(
        self, app: ASGIApp, *, settings: GatewaySettings, desk: bool, clock: Callable[[], float]
    ) -> None:
        self._app = app
        self._settings = settings
        self._desk = desk
        self._rate = RateLimit(settings.requests_per_second, settings.burst, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_origin(scope["method"], headers)
            self._check_rate(scope, headers)
            body = await self._read(scope["method"], headers, receive)
        except Problem as problem:
            await _send(problem, scope["path"], send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_origin(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._desk and host.rpartition(":")[0] not in _LOCAL and host not in _LOCAL:
            raise Problem(
                421,
                "WrongHost",
                f"the host {host[:100]!r} is not this machine: use http://localhost",
            )
        site = headers.get("sec-fetch-site", "none")
        origin = headers.get("origin")
        foreign = site not in ("same-origin", "none") or (
            origin is not None and origin.partition("://")[2] != host
        )
        if method not in _SAFE and foreign:
            raise Problem(
                403,
                "CrossSite",
                "the request comes from a page of another site: send it from a program, or from a "
                "page of this one",
            )

    def _check_rate(self, scope: Scope, headers: Headers) -> None:
        who = headers.get("authorization") or str((scope.get("client") or ("",))[0])
        wait = self._rate.wait_of(hashlib.sha256(who.encode()).digest())
        if wait:
            raise Problem(
                429,
                "TooManyRequests",
                f"this caller sends more than {self._settings.requests_per_second:g} requests a "
                f"second: wait {wait:.2f} s",
                {"Retry-After": str(math.ceil(wait))},
            )

    async def _read(self, method: str, headers: Headers, receive: Receive) -> bytes:
        """Return the body."""
        limit = self._settings.body_bytes
        too_large = Problem(
            413,
            "BodyTooLarge",
            f"the body has more than {limit} bytes: store the data elsewhere, and send where it is",
        )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "Disconnected", "the body has not arrived: send it all")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise Problem(
                408, "BodyTimeout", f"the body has not arrived within {_BODY_SECONDS:g} s"
            ) from None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and method not in _SAFE and kind != "application/json":
            raise Problem(
                415,
                "NotJson",
                f"the body is {kind[:100]!r}: send JSON, with Content-Type: application/json",
            )
        return bytes(body)


async def _send(problem: Problem, path: str, send: Send) -> None:
    body = problem.body(path)
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    if problem.status in (408, 413):
        headers["connection"] = "close"  # what has not been read is not waited for
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
