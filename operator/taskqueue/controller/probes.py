"""The operator's HTTP port: /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from taskqueue.logs import EventLog

log = EventLog(__name__)


async def serve_probes(port: int, *, ready: Callable[[], bool]) -> web.AppRunner:
    """Serve until the runner's ``cleanup`` is called.

    /healthz answers as long as the event loop runs: a restart could fix nothing else. /readyz
    answers 200 once all Tasks and worker Deployments are known.

    Raises:
        OSError: the port is taken.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="still reading Tasks and Deployments\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    log.info("probes.started", port=port)
    return runner
