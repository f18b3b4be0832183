"""A watch that passes through an API proxy, and can be disturbed while it is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from tests.faults.api_faults import ApiRequest, Cut, End, ErrorEvent, Silence, WatchFault


class OpenWatch:
    """Passes the events of one watch, until it ends or is disturbed.

    Args:
        request: that opened it.
        fault: what happens to it from its begin; None: nothing yet.
    """

    def __init__(self, request: ApiRequest, fault: WatchFault | None) -> None:
        self.request = request
        self._fault = fault
        self._disturbed = asyncio.Event()
        if fault is not None:
            self._disturbed.set()

    @property
    def is_disturbed(self) -> bool:
        """Whether a fault has hit it."""
        return self._fault is not None

    @property
    def is_cut(self) -> bool:
        """Whether its connection has to be reset."""
        return isinstance(self._fault, Cut)

    def disturb(self, fault: WatchFault) -> None:
        """Apply a fault; a watch bears one."""
        self._fault = fault
        self._disturbed.set()

    async def pass_events(
        self, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        """Pass whole events; return when the watch has to end.

        Args:
            answer: of the API server.
            response: to the client, its headers sent.
        """
        passing = asyncio.ensure_future(_pass_lines(answer, response))
        disturbed = asyncio.ensure_future(self._disturbed.wait())
        try:
            await asyncio.wait({passing, disturbed}, return_when=asyncio.FIRST_COMPLETED)
            if not self.is_disturbed:
                await passing
                return
            passing.cancel()
            await asyncio.wait({passing})
            match self._fault:
                case Silence():
                    answer.close()
                    # Until the client gives up: its going away cancels this.
                    await asyncio.Event().wait()
                case ErrorEvent() as error:
                    await response.write(error.line)
                case End() | Cut() | None:
                    pass
        finally:
            passing.cancel()
            disturbed.cancel()


async def _pass_lines(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    async for lines in _whole_lines(answer.content):
        await response.write(lines)


async def _whole_lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield what comes, cut only at the ends of lines."""
    rest = b""
    async for chunk in stream.iter_any():
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            yield whole + newline
