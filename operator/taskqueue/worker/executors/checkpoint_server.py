"""Serves the last checkpoint of an attempt to the service that works on it.

Each attempt has an address of its own, on the loopback interface and hard to guess, for as long as
it runs: GET returns the last checkpoint, PUT saves another. Only what runs in the pod reaches it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from taskqueue.worker.checkpoints import TextCheckpoint

_HOST = "127.0.0.1"

#: How long an answer may take at the end, in seconds.
_SHUTDOWN_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Served:
    checkpoint: TextCheckpoint
    on_needed: Callable[[], None]


class CheckpointServer:
    """Serves checkpoints over HTTP until closed. All methods are called on one loop."""

    def __init__(self) -> None:
        self._served: dict[str, _Served] = {}
        self._runner: web.ServerRunner | None = None
        self._listening: asyncio.Task[str] | None = None

    async def add(self, checkpoint: TextCheckpoint, on_needed: Callable[[], None]) -> str:
        """Return the address at which a checkpoint is served from now on.

        Args:
            checkpoint: of an attempt.
            on_needed: called when the service asks for it and only the operator knows it.

        Raises:
            OSError: no port can be opened.
        """
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        # An attempt that is cancelled meanwhile takes it from no other.
        origin = await asyncio.shield(self._listening)
        path = "/" + secrets.token_urlsafe(16)
        self._served[path] = _Served(checkpoint, on_needed)
        return origin + path

    def remove(self, address: str) -> None:
        """Serve nothing at an address any more; harmless if nothing is."""
        self._served.pop("/" + address.rpartition("/")[2], None)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _listen(self) -> str:
        server = web.Server(self._answer, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
        try:
            await runner.setup()
            await web.TCPSite(runner, _HOST, 0).start()
        except OSError:
            self._listening = None  # the next attempt tries again
            raise
        self._runner = runner
        return f"http://{_HOST}:{runner.addresses[0][1]}"

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        text = await request.read()
        served = self._served.get(request.path)
        if served is None:
            return web.Response(status=404, text="no attempt that runs here has this checkpoint\n")
        checkpoint = served.checkpoint
        if request.method == "PUT":
            problem = checkpoint.save(text)
            if problem:
                return web.Response(status=400, text=f"{problem}\n")
            return web.Response(status=204)
        if request.method != "GET":
            return web.Response(status=405, text="GET or PUT\n", headers={"Allow": "GET, PUT"})
        if not checkpoint.is_known:
            served.on_needed()
            return web.Response(
                status=409,
                text="this message is too old to have it: the attempt is given back, uncounted, "
                "and sent again with its last checkpoint\n",
            )
        last = checkpoint.last
        if not last:
            return web.Response(status=204)
        return web.Response(body=last, content_type="application/json")
