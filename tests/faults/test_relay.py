"""The relay: each fault as both ends of a connection see it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.faults.relay import Direction, Relay, open_relay


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    """The port of a server that sends everything back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def relay(echo_port: int) -> Iterator[tuple[Relay, int]]:
    with open_relay("127.0.0.1", echo_port) as opened:
        yield opened


async def echo(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"x"
) -> float:
    """Send, wait for the echo, and return how long it took in seconds."""
    began = time.monotonic()
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), 10) == data
    return time.monotonic() - began


async def test_relay_delays_each_direction_and_keeps_the_order(relay: tuple[Relay, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay[1])
    with relay[0].delayed(0.2):
        assert await echo(reader, writer, b"slow") >= 0.4
    with relay[0].delayed(0.2, (Direction.TO_CLIENT,)):
        writer.write(b"1")
        await asyncio.sleep(0.05)
    # What is under way stays late, and nothing overtakes it.
    writer.write(b"2")
    assert await reader.readexactly(2) == b"12"
    await echo(reader, writer, b"many" * 100_000)
    writer.close()


async def test_relay_holds_back_what_a_black_hole_swallows_until_its_end(
    relay: tuple[Relay, int],
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay[1])
    await echo(reader, writer)
    with relay[0].black_hole((Direction.TO_CLIENT,)):
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        assert relay[0].forwarded == {Direction.TO_SERVER: 5, Direction.TO_CLIENT: 1}
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b"held"
    writer.close()


async def test_relay_that_is_down_resets_old_and_new_connections(
    relay: tuple[Relay, int],
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay[1])
    await echo(reader, writer)
    with relay[0].down():
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await echo(*await asyncio.open_connection("127.0.0.1", relay[1]))
    await echo(*await asyncio.open_connection("127.0.0.1", relay[1]))
    assert relay[0].connections == 3


def test_relay_in_a_thread_serves_a_test_without_a_loop() -> None:
    with (
        accepting() as port,
        open_relay("127.0.0.1", port) as (relay, relayed),
        socket.create_connection(("127.0.0.1", relayed), timeout=5) as client,
    ):
        assert client.recv(5) == b"hello"
        relay.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@contextmanager
def accepting() -> Iterator[int]:
    """Greet one client, and wait until it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")
                try:
                    connection.recv(1)
                except ConnectionResetError:
                    return

        done = pool.submit(greet)
        yield server.getsockname()[1]
        done.result(timeout=10)
