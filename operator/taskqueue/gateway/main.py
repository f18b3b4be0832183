"""``python -m taskqueue gateway``: serves HTTP until it is told to end.

After SIGTERM it is not ready, and serves on for a while, until no new requests are sent to it. Then
streams and waits end, requests under way are answered, and it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

import uvicorn
import uvloop
from kubernetes.aio.config import ConfigException

from taskqueue.gateway.app import make_app
from taskqueue.gateway.credentials import Credentials
from taskqueue.gateway.services import Services
from taskqueue.gateway.settings import GatewaySettings
from taskqueue.kubernetes.client import load_access
from taskqueue.logs import EventLog, configure

log = EventLog(__name__)

#: How long requests under way may take once the gateway ends, in seconds.
_LAST_SECONDS = 20
_KEEP_ALIVE_SECONDS = 75


_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class CannotStart(Exception):
    """The gateway cannot start; the text says why and what to do."""


class GatewayServer(uvicorn.Server):
    """A server that drains before it ends.

    Args:
        config: of uvicorn.
        services: told when it drains.
        drain_seconds: how long it serves on.
    """

    def __init__(self, config: uvicorn.Config, services: Services, drain_seconds: float) -> None:
        super().__init__(config)
        self._services = services
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Serve until a signal comes."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first SIGTERM, and end at once on anything else."""
        loop = self._loop
        if sig != signal.SIGTERM or loop is None or self._services.draining.is_set():
            if loop is not None:
                loop.call_soon_threadsafe(self._services.draining.set)
            super().handle_exit(sig, frame)
            return
        log.info("gateway.draining", seconds=self._drain_seconds)
        loop.call_soon_threadsafe(self._services.draining.set)
        loop.call_soon_threadsafe(
            loop.call_later, self._drain_seconds, super().handle_exit, sig, frame
        )


async def serve(
    settings: GatewaySettings, *, kubeconfig: str | None, environment: Mapping[str, str]
) -> None:
    """Serve until a signal comes.

    Args:
        settings: of the gateway.
        kubeconfig: path of the file whose user makes the requests without a token; None: in a
            cluster nobody, elsewhere the usual places.
        environment: says whether this is a cluster.

    Raises:
        CannotStart: there is no API server, or no port.
    """
    desk = kubeconfig is not None or not environment.get("KUBERNETES_SERVICE_HOST")
    host = settings.host or ("127.0.0.1" if desk else "0.0.0.0")  # noqa: S104
    if desk and host not in _LOOPBACK:
        raise CannotStart(
            f"TASKQUEUE_GATEWAY_HOST is {host}: outside a cluster the gateway acts with your "
            "kubeconfig for whoever reaches it, so it listens on 127.0.0.1 only"
        )
    try:
        access = await load_access(kubeconfig)
    except (ConfigException, OSError) as error:
        raise CannotStart(f"cannot find the API server: give --kubeconfig ({error})") from error
    services = Services(Credentials(access, desk=desk))
    config = uvicorn.Config(
        make_app(services, settings, desk=desk),
        host=host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.open_requests,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LAST_SECONDS,
        proxy_headers=False,
    )
    server = GatewayServer(config, services, settings.drain_seconds)
    log.info("gateway.started", host=host, port=settings.port, desk=desk, pid=os.getpid())
    await server.serve()


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command ``gateway`` and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="taskqueue gateway",
        description="Serve Tasks and TaskQueues over HTTP (docs/guides/http.md).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="on a desk: who makes the requests that have no token (default: $KUBECONFIG, or "
        "~/.kube/config; in a cluster nobody)",
    )
    options = parser.parse_args(words)
    try:
        settings = GatewaySettings.from_environment(environment)
    except ValueError as error:
        parser.error(str(error))
    configure()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, kubeconfig=options.kubeconfig, environment=environment))
    except CannotStart as error:
        print(f"taskqueue gateway: {error}", file=sys.stderr)
        return 1
    return 0
