"""A reverse proxy before the API server that disturbs chosen requests and watches.

It runs in a thread of its own, so tests of any kind can use it: an operator in the test's process,
one that runs as a subprocess (`ApiProxy.write_kubeconfig`), and one in a pod
(`ApiProxy.pod_addition`).

A request keeps its token, and so its rights. The kubeconfig that the proxy writes has a token of
its own, for which the proxy uses the client certificate it was opened with. `kubectl exec` and
other upgraded connections are not supported.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from taskqueue.loop_thread import LoopThread
from tests.faults.api_faults import (
    Answer,
    ApiFault,
    ApiRequest,
    Cut,
    Delay,
    Hang,
    Rule,
    WatchFault,
    describe_request,
)
from tests.faults.api_upstream import SERVICE_NAME, Upstream, kubeconfig_of, server_tls
from tests.faults.api_watch import OpenWatch
from tests.faults.pods import PodAddition
from tests.faults.reset import reset_connection

#: Headers that belong to one connection, or that each side makes itself.
_OWN_HEADERS = {"host", "connection", "keep-alive", "transfer-encoding", "te", "upgrade"}

_MAX_BODY_BYTES = 64 * 1024 * 1024

#: Where a pod's credentials are.
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(kw_only=True)
class SeenRequest:
    """A request that passed the proxy or was hit.

    Attributes:
        request: what it was.
        fault: what hit it; None: nothing.
        status: HTTP status that the client got; 0: none (yet).
    """

    request: ApiRequest
    fault: ApiFault | None = None
    status: int = 0


class ApiProxy:
    """Passes requests to an API server, and disturbs those that rules select.

    Methods may be called from any thread; open one by `open_api_proxy`.
    """

    def __init__(self, upstream: Upstream, *, address: str, authority: str | None) -> None:
        self._upstream = upstream
        self._address = address
        self._authority = authority
        self._port = 0
        self._token = secrets.token_urlsafe()
        self._rules: list[Rule] = []
        self._rule_ended: dict[Rule, asyncio.Event] = {}
        self._watches: set[OpenWatch] = set()
        self._page_of_token: dict[str, int] = {}
        self._thread = LoopThread("API proxy")
        self._runner: web.AppRunner | None = None
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        #: Every request so far, in order.
        self.seen: list[SeenRequest] = []

    # For tests.

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "https" if self._authority else "http"
        return f"{scheme}://{self._address}:{self._port}"

    @contextmanager
    def fault(
        self,
        fault: ApiFault,
        *,
        method: str | None = None,
        path: str = "",
        name: str | None = None,
        page: int | None = None,
        is_watch: bool | None = None,
        skip: int = 0,
        times: int | None = None,
        seconds: float | None = None,
        after_execution: bool = False,
    ) -> Iterator[Rule]:
        """Apply a fault to the requests that match; arguments as of `Rule`.

        Where several rules hit a request, the one that began last counts.
        """
        rule = Rule(
            fault=fault,
            method=method,
            path=path,
            name=name,
            page=page,
            is_watch=is_watch,
            skip=skip,
            times=times,
            seconds=seconds,
            after_execution=after_execution,
        )
        self._thread.run(self._add(rule))
        try:
            yield rule
        finally:
            self._thread.run(self._remove(rule))

    def disturb_watches(
        self,
        fault: WatchFault,
        *,
        path: str = "",
        name: str | None = None,
        labels: str | None = None,
    ) -> int:
        """Apply a fault to open watches, and return to how many.

        Args:
            fault: what happens to them.
            path: a regular expression that is searched for in the path of a watch.
            name: of the object, for watches of a single one.
            labels: the label selector; "": only watches without one.
        """
        rule = Rule(fault=fault, path=path, name=name, labels=labels)

        async def disturb() -> int:
            found = [
                one for one in self._watches if not one.is_disturbed and rule.matches(one.request)
            ]
            for watch in found:
                watch.disturb(fault)
            return len(found)

        return self._thread.run(disturb())

    @property
    def open_watches(self) -> int:
        """How many watches are open, silent ones included."""
        return len(self._watches)

    def count(
        self,
        *,
        method: str | None = None,
        path: str = "",
        name: str | None = None,
        page: int | None = None,
        is_watch: bool | None = None,
        labels: str | None = None,
    ) -> int:
        """Return how many requests matched so far; arguments as of `Rule`."""
        rule = Rule(
            fault=Hang(),
            method=method,
            path=path,
            name=name,
            page=page,
            is_watch=is_watch,
            labels=labels,
        )
        return sum(rule.matches(one.request) for one in self.seen)

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for programs on this machine, and return its path."""
        path.write_text(yaml.safe_dump(kubeconfig_of(self.url, self._authority, self._token)))
        return path

    def pod_addition(self) -> PodAddition:
        """Return what makes a pod use this proxy, with the token of its service account.

        The proxy must listen with TLS at an address that pods reach, for the operator at port 443:
        kopf connects to kubernetes.default.svc.
        """
        assert self._authority, "pods accept only https: open the proxy with tls=True"
        name = "api-proxy"
        token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}
        field_ref = {"fieldPath": "metadata.namespace"}
        namespace = {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field_ref}]}}
        return PodAddition(
            config_map={
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name},
                "data": {"ca.crt": self._authority},
            },
            volumes=[
                {
                    "name": name,
                    "projected": {"sources": [token, {"configMap": {"name": name}}, namespace]},
                }
            ],
            mounts=[{"name": name, "mountPath": _SERVICE_ACCOUNT, "readOnly": True}],
            environment={
                "KUBERNETES_SERVICE_HOST": self._address,
                "KUBERNETES_SERVICE_PORT": str(self._port),
            },
            host_aliases=[{"ip": self._address, "hostnames": [SERVICE_NAME]}],
        )

    # Life.

    def start(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Listen at a port (0: any), with TLS if a context is given."""
        self._thread.run(self._start(port, tls))

    def close(self) -> None:
        """Cut all connections and stop."""
        self._thread.finish(self._close())

    async def _start(self, port: int, tls: ssl.SSLContext | None) -> None:
        # A request is cancelled when its client goes away.
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None
        )
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, self._address, port, ssl_context=tls).start()
        self._port = runner.addresses[0][1]
        for with_certificate, context in (
            (True, self._upstream.with_certificate),
            (False, self._upstream.without_certificate),
        ):
            self._sessions[with_certificate] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context or False, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
                read_bufsize=2**18,
            )

    async def _close(self) -> None:
        if self._runner:
            await self._runner.cleanup()
        for session in self._sessions.values():
            await session.close()

    async def _add(self, rule: Rule) -> None:
        self._rules.append(rule)
        self._rule_ended[rule] = asyncio.Event()

    async def _remove(self, rule: Rule) -> None:
        self._rules.remove(rule)
        self._rule_ended.pop(rule).set()

    # Requests.

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        described = describe_request(
            request.method, request.path, request.query, body, self._page_of_token
        )
        seen = SeenRequest(request=described)
        self.seen.append(seen)
        rule = self._rule_for(seen.request)
        if rule is None:
            return await self._pass(request, body, seen, None)
        seen.fault = rule.fault
        if rule.after_execution:
            async with self._send(request, body) as answer:
                await answer.read()
        match rule.fault:
            case Answer(status=status) as fault:
                seen.status = status
                return web.Response(
                    status=status,
                    headers=fault.headers,
                    body=fault.body,
                    content_type="application/json",
                )
            case Delay(seconds=seconds):
                await asyncio.sleep(seconds)
                return await self._pass(request, body, seen, None)
            case Hang():
                await self._end_of(rule)
                return _cut(request)
            case Cut():
                return _cut(request)
            case fault:
                return await self._pass(request, body, seen, fault)

    def _rule_for(self, request: ApiRequest) -> Rule | None:
        matching = [rule for rule in self._rules if rule.matches(request)]
        # All of them count it; the newest that hits is applied.
        return next((rule for rule in reversed(matching) if rule.count_match()), None)

    async def _end_of(self, rule: Rule) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(rule.remaining_seconds):
                await self._rule_ended[rule].wait()

    async def _pass(
        self, request: web.Request, body: bytes, seen: SeenRequest, fault: WatchFault | None
    ) -> web.StreamResponse:
        try:
            async with self._send(request, body) as answer:
                seen.status = answer.status
                response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
                if seen.request.is_watch and answer.status == 200:
                    await response.prepare(request)
                    watch = OpenWatch(seen.request, fault)
                    self._watches.add(watch)
                    try:
                        await watch.pass_events(answer, response)
                    finally:
                        self._watches.discard(watch)
                    return _cut(request) if watch.is_cut else response
                if seen.request.page:
                    page = await answer.read()
                    self._note_token(page, answer, seen.request.page)
                    await response.prepare(request)
                    await response.write(page)
                    return response
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response
        except aiohttp.ClientError:
            # The API server is away, or the client: either way this connection is over.
            return _cut(request)

    def _send(self, request: web.Request, body: bytes) -> aiohttp.client._RequestContextManager:
        headers = _kept(request.headers)
        is_ours = headers.get("Authorization") == f"Bearer {self._token}"
        if is_ours:
            del headers["Authorization"]
        if "watch" in request.query:
            headers.pop("Accept-Encoding", None)
        session = self._sessions[is_ours]
        url = URL(self._upstream.url + request.raw_path, encoded=True)
        return session.request(request.method, url, headers=headers, data=body or None)

    def _note_token(self, raw: bytes, answer: aiohttp.ClientResponse, page: int) -> None:
        """Remember which page the token in this page leads to."""
        if answer.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        with suppress(ValueError, AttributeError, RecursionError):
            token = json.loads(raw)["metadata"].get("continue")
            if token:
                self._page_of_token[token] = page + 1


@contextmanager
def open_api_proxy(
    upstream: Upstream | Path, *, address: str = "127.0.0.1", port: int = 0, tls: bool = False
) -> Iterator[ApiProxy]:
    """Put a proxy before an API server; it is closed on exit.

    Args:
        upstream: the API server, or a kubeconfig.
        address: of this machine, to listen at; for pods, see `relay.address_towards`.
        port: to listen at; 0: any.
        tls: speak TLS, with a certificate for ``address`` by an authority of its own.
    """
    target = Upstream.of(upstream) if isinstance(upstream, Path) else upstream
    context, authority = server_tls(address) if tls else (None, None)
    proxy = ApiProxy(target, address=address, authority=authority)
    try:
        proxy.start(port, context)
        yield proxy
    finally:
        proxy.close()


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        reset_connection(request.transport)
    return web.Response()


def _kept(headers: Any) -> dict[str, str]:
    """Return the headers that are passed on."""
    return {key: value for key, value in headers.items() if key.lower() not in _OWN_HEADERS}
