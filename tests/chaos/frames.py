"""A relay between a worker and the broker that forwards AMQP frames up to a chosen one.

A frame it holds back has left one side and never reaches the other, so the test can stay between
two steps as long as it wants. It does so once; later connections pass through.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum

from taskqueue.amqp.parameters import BrokerParameters

_METHOD_FRAME = 1
#: Type, channel and size before a frame's payload; one octet after it.
_HEAD = struct.Struct(">BHI")
#: Length of the protocol header that a client sends before any frame.
_GREETING = 8


class Way(Enum):
    """The direction of a frame."""

    TO_BROKER = "to the broker"
    TO_WORKER = "to the worker"


@dataclass(frozen=True, slots=True)
class Frame:
    """A method of one connection.

    Attributes:
        way: where it goes.
        connection: number of the connection, from 0.
        channel: number of the channel on it.
        method: class and method id of AMQP 0-9-1.
        arguments: as they are on the wire.
    """

    way: Way
    connection: int
    channel: int
    method: tuple[int, int]
    arguments: bytes


#: Decides whether to hold back a frame, and all that follow in its direction.
Hold = Callable[[Frame], bool]


class FrameRelay:
    """Forwards frames; see `relay_to`.

    Attributes:
        held: set once a frame is held back.
    """

    def __init__(self, host: str, port: int, hold: Hold) -> None:
        self._target = (host, port)
        self._hold = hold
        self._writers: list[asyncio.StreamWriter] = []
        self._connections = 0
        self.held = asyncio.Event()

    def cut(self) -> None:
        """Reset all connections, and drop what is held back."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection of a client."""
        number, self._connections = self._connections, self._connections + 1
        broker_reader, broker_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, broker_writer]
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                broker_writer.write(await reader.readexactly(_GREETING))
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(Way.TO_BROKER, number, reader, broker_writer))
                    group.create_task(self._pump(Way.TO_WORKER, number, broker_reader, writer))
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass  # one side has closed, so the other is closed too
        finally:
            for each in (writer, broker_writer):
                each.transport.abort()

    async def _pump(
        self, way: Way, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head = await reader.readexactly(_HEAD.size)
            kind, channel, size = _HEAD.unpack(head)
            payload = await reader.readexactly(size + 1)
            if kind == _METHOD_FRAME:
                method = struct.unpack_from(">HH", payload)
                frame = Frame(way, number, channel, (method[0], method[1]), payload[4:-1])
                if not self.held.is_set() and self._hold(frame):
                    self.held.set()
                    await asyncio.Event().wait()
            writer.write(head + payload)
            await writer.drain()


@asynccontextmanager
async def relay_to(
    parameters: BrokerParameters, hold: Hold, *, address: str = "127.0.0.1"
) -> AsyncIterator[tuple[FrameRelay, BrokerParameters]]:
    """Put a relay before the broker, at this address of ours."""
    relay = FrameRelay(parameters.host, parameters.port, hold)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await relay.serve(reader, writer)

    server = await asyncio.start_server(serve, address, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield relay, replace(parameters, host=address, port=port)
    finally:
        server.close()
        relay.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
