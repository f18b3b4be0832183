"""A gateway over HTTP in this process, in front of an API server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

import requests
import uvicorn
from aiohttp import web
from kubernetes.aio.client import Configuration

from taskqueue.gateway.app import make_app
from taskqueue.gateway.credentials import Credentials
from taskqueue.gateway.services import Services
from taskqueue.gateway.settings import GatewaySettings
from taskqueue.kubernetes.client import ApiAccess
from taskqueue.loop_thread import LoopThread
from tests.unit.gateway.fake_api_server import FakeApiServer

T = TypeVar("T")

NAMESPACE = "shop"
#: A user who may do everything in the namespace.
TOKEN = "boss"
#: The gateway's own. It may do everything, too: a request made with it by mistake succeeds.
OWN = "gateway"
PATIENCE = 60.0


class RunningGateway:
    """A gateway on a port of its own, in a thread.

    Args:
        access: to the API server.
        settings: of the gateway.
        desk: whether requests without a token are made as the access is.
        loop: to run in.
    """

    def __init__(
        self,
        access: ApiAccess,
        settings: GatewaySettings,
        loop: LoopThread,
        *,
        desk: bool = False,
    ) -> None:
        self._loop = loop
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._access, self._settings, self._desk = access, settings, desk
        self._serving: asyncio.Future[None] | None = None
        loop.run(self._start())

    async def _start(self) -> None:
        self.services = Services(Credentials(self._access, desk=self._desk))
        app = make_app(self.services, self._settings, desk=self._desk)
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)
        )
        self._serving = asyncio.ensure_future(self._server._serve([self._socket]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """End it as SIGTERM does."""
        self._loop.run(self._stop())

    async def _stop(self) -> None:
        self.services.draining.set()
        self._server.should_exit = True
        assert self._serving is not None
        await self._serving

    def request(
        self, method: str, path: str, *, token: str | None = TOKEN, **more: Any
    ) -> requests.Response:
        """Send a request."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        headers |= more.pop("headers", {})
        return requests.request(method, self.url + path, headers=headers, timeout=PATIENCE, **more)

    def tasks(self, method: str, path: str = "", **more: Any) -> requests.Response:
        """Send a request about Tasks of the namespace."""
        return self.request(method, f"/v1/namespaces/{NAMESPACE}/tasks{path}", **more)


class Scene:
    """A fake API server, and what runs in its loop."""

    def __init__(self) -> None:
        self.loop = LoopThread("gateway-tests")
        self.loop.run(self._start())

    async def _start(self) -> None:
        self.api = FakeApiServer()
        self.api.allow(TOKEN, NAMESPACE, ("*", "*"))
        self.api.allow(OWN, NAMESPACE, ("*", "*"))
        self._runner = web.AppRunner(self.api.app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(self._runner, sock).start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{sock.getsockname()[1]}"
        configuration.api_key["BearerToken"] = OWN
        configuration.api_key_prefix["BearerToken"] = "Bearer"
        self.access = ApiAccess(configuration, None)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop of the API server."""
        return self.loop.run(coroutine)

    def gateway(self, *, desk: bool = False, **settings: Any) -> RunningGateway:
        """Start a gateway."""
        limits = {"requests_per_second": 1e6, "burst": 10**6, **settings}
        return RunningGateway(self.access, GatewaySettings(**limits), self.loop, desk=desk)

    def close(self) -> None:
        """End it."""
        self.loop.finish(self._runner.cleanup())


def new_task(**spec: Any) -> dict[str, Any]:
    """Return the body of a request for a Task."""
    return {"spec": {"queue": "work", "handler": "greet", **spec}}
