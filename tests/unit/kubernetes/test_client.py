"""The client of the API server: how much of an answer it reads."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from taskqueue.kubernetes.client import (
    OBJECT_BYTES,
    TOO_LARGE,
    ApiAccess,
    ApiClient,
    ApiError,
    _lines,
)


class Endless:
    """Answers with a body that does not end, until the client leaves."""

    def __init__(self) -> None:
        self.status = 200
        self.encodings: list[str | None] = []
        self.written = 0
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.encodings.append(request.headers.get("Accept-Encoding"))
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 2**16)
                self.written += 2**16
        except ConnectionError:
            self.left.set()
        return response

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ApiClient]:
        app = web.Application()
        app.router.add_get("/endless", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        client = ApiClient(ApiAccess(configuration=configuration, ssl_context=None))
        try:
            yield client
        finally:
            await client.close()
            await runner.cleanup()


async def test_an_answer_is_abandoned_where_it_is_too_long() -> None:
    endless = Endless()
    async with endless.serve() as client:
        with pytest.raises(ApiError, match="above 1000000 bytes") as caught:
            await client.send("GET", "/endless", most_bytes=1_000_000)
        assert (caught.value.status, caught.value.reason) == (0, TOO_LARGE)
        await asyncio.wait_for(endless.left.wait(), 10)
        assert endless.written < 20_000_000  # some of it is in the buffers of sockets


async def test_a_line_of_a_watch_is_kept_up_to_its_limit() -> None:
    chunk = b"x" * 2**20

    class Stream:
        async def iter_any(self) -> AsyncIterator[bytes]:
            for _ in range(64):
                yield chunk
            yield b"\n{}\n\n"

    tracemalloc.start()
    try:
        lines = [line async for line in _lines(cast(aiohttp.StreamReader, Stream()))]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == [(b"x" * OBJECT_BYTES, False), (b"{}", True)]
    assert peak < 5 * OBJECT_BYTES


async def test_a_refusal_is_a_refusal_however_long_it_is() -> None:
    endless = Endless()
    endless.status = 403
    async with endless.serve() as client:
        with pytest.raises(ApiError, match=r"^x{500} ") as caught:
            await client.send("GET", "/endless", most_bytes=1_000_000)
        assert (caught.value.status, caught.value.reason) == (403, "Forbidden")


async def test_answers_are_asked_for_uncompressed() -> None:
    """A few bytes of a compressed answer may be any number of bytes of JSON."""
    endless = Endless()
    async with endless.serve() as client:
        with pytest.raises(ApiError):
            await client.send("GET", "/endless", most_bytes=1)
    assert endless.encodings == ["identity"]
