"""A TCP relay between a client and a server, the broker first of all: it breaks connections.

`relay_to` runs one in the test's own event loop. `open_relay` runs one in a thread, for tests
without a loop and for clients elsewhere, such as pods that reach this machine at its address on
the node's link. The methods of `Relay` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.loop_thread import LoopThread
from tests.faults.reset import reset_connection

#: How many pieces of up to 64 KiB may be delayed at a time; then the sender has to wait.
_DELAYED_PIECES = 256


class Direction(Enum):
    """A direction in which bytes flow."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)


@dataclass
class _Flow:
    """What happens to the bytes of one direction."""

    delay_seconds: float = 0.0
    #: How many black holes there are now.
    holes: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def add_holes(self, number: int) -> None:
        self.holes += number
        if self.holes:
            self.open.clear()
        else:
            self.open.set()


class Relay:
    """Forwards bytes both ways, until a test disturbs it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.get_running_loop()
        self._writers: list[asyncio.StreamWriter] = []
        self._flows = {direction: _Flow() for direction in BOTH}
        for flow in self._flows.values():
            flow.open.set()
        self._refusals = 0
        #: Connections that clients have opened so far, refused ones included.
        self.connections = 0
        #: Bytes forwarded so far.
        self.forwarded = dict.fromkeys(BOTH, 0)

    @contextmanager
    def delayed(self, seconds: float, directions: tuple[Direction, ...] = BOTH) -> Iterator[None]:
        """Forward each byte this much later; what is under way at the end keeps its delay."""

        def add(more: float) -> None:
            for direction in directions:
                self._flows[direction].delay_seconds += more

        self._call(lambda: add(seconds))
        try:
            yield
        finally:
            self._call(lambda: add(-seconds))

    @contextmanager
    def black_hole(self, directions: tuple[Direction, ...] = BOTH) -> Iterator[None]:
        """Forward nothing, and keep both sides open; at the end, what was held back follows."""

        def add(number: int) -> None:
            for direction in directions:
                self._flows[direction].add_holes(number)

        self._call(lambda: add(1))
        try:
            yield
        finally:
            self._call(lambda: add(-1))

    @contextmanager
    def down(self) -> Iterator[None]:
        """Reset all connections, and each new one as soon as it is open."""

        def add(number: int) -> None:
            self._refusals += number

        self._call(lambda: add(1))
        self.cut()
        try:
            yield
        finally:
            self._call(lambda: add(-1))

    def freeze(self) -> None:
        """Forward nothing any more, but keep both sides open: a network that swallows packets."""

        def close() -> None:
            for flow in self._flows.values():
                flow.add_holes(1)

        self._call(close)

    def cut(self) -> None:
        """Reset both sides of every connection."""

        def reset() -> None:
            for writer in self._writers:
                reset_connection(writer.transport)

        self._call(reset)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection of a client."""
        self.connections += 1
        if self._refusals:
            reset_connection(writer.transport)
            return
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        ours = [writer, server_writer]
        self._writers += ours
        try:
            pumps = [
                asyncio.ensure_future(self._pump(reader, server_writer, Direction.TO_SERVER)),
                asyncio.ensure_future(self._pump(server_reader, writer, Direction.TO_CLIENT)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
        finally:
            for each in ours:
                each.transport.abort()
                self._writers.remove(each)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        """Forward one direction until a side closes, and what is delayed then has been sent."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_DELAYED_PIECES)
        receiving = asyncio.ensure_future(self._receive(reader, pieces, direction))
        try:
            with suppress(ConnectionError):
                await self._send(pieces, writer, direction)
        finally:
            receiving.cancel()

    async def _receive(
        self,
        reader: asyncio.StreamReader,
        pieces: asyncio.Queue[tuple[float, bytes]],
        direction: Direction,
    ) -> None:
        flow = self._flows[direction]
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await flow.open.wait()
                await pieces.put((self._loop.time() + flow.delay_seconds, data))
                if not flow.delay_seconds:
                    await pieces.join()  # the sender waits while the receiver does not read
        await pieces.put((self._loop.time(), b""))

    async def _send(
        self,
        pieces: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        while True:
            due, data = await pieces.get()
            if not data:
                return
            await asyncio.sleep(due - self._loop.time())
            await self._flows[direction].open.wait()
            writer.write(data)
            self.forwarded[direction] += len(data)
            await writer.drain()
            pieces.task_done()

    def _call(self, change: Callable[[], None]) -> None:
        """Make a change in the relay's loop, and return when it is made."""
        try:
            if asyncio.get_running_loop() is self._loop:
                change()
                return
        except RuntimeError:  # this thread has no loop
            pass

        async def changing() -> None:
            change()

        asyncio.run_coroutine_threadsafe(changing(), self._loop).result(timeout=10)


@asynccontextmanager
async def relay_to(
    parameters: BrokerParameters, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Relay, BrokerParameters]]:
    """Put a relay before the broker, speaking TLS to clients if wanted."""
    async with _listening(parameters.host, parameters.port, "127.0.0.1", tls) as (relay, port):
        yield relay, replace(parameters, host="127.0.0.1", port=port)


@contextmanager
def open_relay(host: str, port: int, *, address: str = "127.0.0.1") -> Iterator[tuple[Relay, int]]:
    """Put a relay before a server, in a thread; yield it and the port it listens at.

    Args:
        host: of the server.
        port: of the server.
        address: of this machine, to listen at; for pods, see `address_towards`.
    """
    thread = LoopThread("relay")
    listening = _listening(host, port, address, None)
    try:
        yield thread.run(listening.__aenter__())
    finally:
        thread.run(listening.__aexit__(None, None, None))
        thread.finish(asyncio.sleep(0))


def address_towards(host: str) -> str:
    """Return the address of this machine that a host, such as a node and its pods, reaches."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # a datagram socket sends nothing for this
        return str(probe.getsockname()[0])


@asynccontextmanager
async def _listening(
    host: str, port: int, address: str, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[Relay, int]]:
    relay = Relay(host, port)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):
            await relay.serve(reader, writer)

    server = await asyncio.start_server(serve, address, 0, ssl=tls)
    try:
        yield relay, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        relay.cut()
        remaining = list(tasks)
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)


@asynccontextmanager
async def listener(greeting: bytes = b"") -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Listen on a port, greet, and never answer; the event is set when a client has gone."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            writer.write(greeting)
            await reader.read(-1)
        gone.set()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], gone
    finally:
        server.close()
