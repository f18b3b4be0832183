"""A PostgreSQL that takes a login and never answers again, as one that was paused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from taskqueue.archive.archive import Archive
from taskqueue.archive.errors import ArchiveError, ArchiveTrouble
from taskqueue.results.connection import StoreConnection, open_store
from taskqueue.results.store import StoreError

#: Welcome, the key to cancel a statement with, and ready for one.
_LOGGED_IN = b"R\0\0\0\x08\0\0\0\0" + b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02" + b"Z\0\0\0\x05I"


class HangingServer:
    """Counts connections: whoever gives up must not open another to cancel a statement."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked = asyncio.Event()
        self._open: list[asyncio.StreamWriter] = []

    async def start(self) -> StoreConnection:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return StoreConnection(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.append(writer)
        await reader.readexactly(int.from_bytes(await reader.readexactly(4)) - 4)
        writer.write(_LOGGED_IN)
        if await reader.read(1):
            self.asked.set()

    def close(self) -> None:
        for writer in self._open:
            writer.close()
        self._server.close()


@pytest.fixture
async def server() -> AsyncIterator[HangingServer]:
    server = HangingServer()
    yield server
    server.close()


@pytest.mark.parametrize("may_create", [True, False])
async def test_a_call_is_given_up_without_asking_the_server_again(
    server: HangingServer, may_create: bool
) -> None:
    archive = Archive(await server.start(), timeout=0.2, may_create=may_create)
    with pytest.raises(ArchiveError) as caught:
        await archive.missing(["u"])
    assert caught.value.trouble is ArchiveTrouble.UNAVAILABLE
    assert server.connections == 1
    await archive.close()


async def test_a_store_is_given_up_without_asking_the_server_again(server: HangingServer) -> None:
    store = open_store(await server.start(), timeout=0.2)
    with pytest.raises(StoreError) as caught:
        await store.get("k")
    assert caught.value.transient
    assert server.connections == 1
    await store.close()


async def test_whoever_is_cancelled_ends_without_the_server(server: HangingServer) -> None:
    archive = Archive(await server.start(), timeout=100)
    call = asyncio.create_task(archive.missing(["u"]))
    await server.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert server.connections == 1
    await archive.close()
