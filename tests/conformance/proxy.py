"""A proxy between a worker and the broker that understands AMQP frames.

It records what the worker requests and settles. It can hold confirms back, turn one into a nack,
freeze or cut connections, and make the broker close a channel.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pika import frame as frames
from pika import spec

from taskqueue.amqp.parameters import BrokerParameters

#: Length of the protocol header that a client sends before any frame.
_GREETING = 8

#: A delivery tag that no worker ever has.
_UNKNOWN_TAG = 999_999_999


@dataclass(eq=False)
class Link:
    """One connection of the worker."""

    to_worker: asyncio.StreamWriter
    to_broker: asyncio.StreamWriter
    #: Methods the worker sent, in order.
    sent: list[Any] = field(default_factory=list)
    #: Frames of the worker that were forwarded, heartbeats included.
    frames: int = 0
    #: Queue by channel and consumer tag.
    consumers: dict[tuple[int, str], str] = field(default_factory=dict)
    #: Queues of consume requests without an answer yet, by channel.
    requested: dict[int, list[str]] = field(default_factory=dict)
    #: Tags of unsettled deliveries of the work queue, by channel.
    unsettled: dict[int, set[int]] = field(default_factory=dict)
    closed: bool = False

    def sent_methods(self, kind: type) -> list[Any]:
        """Return what the worker sent of a kind."""
        return [method for method in self.sent if isinstance(method, kind)]

    @property
    def publishes(self) -> bool:
        """Whether the worker has published on it."""
        return bool(self.sent_methods(spec.Basic.Publish))

    def consumes(self, queue: str) -> bool:
        """Whether the worker consumes or has consumed a queue on it."""
        return any(method.queue == queue for method in self.sent_methods(spec.Basic.Consume))


class Proxy:
    """Relays the connections of one worker, and records and disturbs them."""

    def __init__(self, host: str, port: int, queue: str) -> None:
        self._target = (host, port)
        self._queue = queue
        self.links: list[Link] = []
        #: The most unsettled deliveries of the work queue at once.
        self.most_unsettled = 0
        #: How deliveries of the work queue were settled: ack, nack or reject, each once.
        self.settled: list[str] = []
        #: How many consumers of the work queue the broker has confirmed.
        self.consumed = 0
        #: Messages the broker returned to the worker.
        self.returned = 0
        self._confirms_to_refuse = 0
        self._holding = False
        self._held: list[tuple[Link, bytes]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._more = asyncio.Event()

    # For scenarios.

    @property
    def open_links(self) -> list[Link]:
        """The links that are open."""
        return [link for link in self.links if not link.closed]

    @property
    def consuming(self) -> Link:
        """The link that consumes work."""
        return next(link for link in reversed(self.open_links) if link.consumes(self._queue))

    @property
    def publishing(self) -> Link:
        """The link that publishes outcomes."""
        return next(link for link in reversed(self.open_links) if link.publishes)

    @property
    def unsettled(self) -> int:
        """Deliveries of the work queue that the worker has not settled."""
        return sum(len(tags) for link in self.open_links for tags in link.unsettled.values())

    def sent(self, kind: type) -> list[Any]:
        """Return what the worker sent of a kind, over all links."""
        return [method for link in self.links for method in link.sent_methods(kind)]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition on the recorded frames holds."""
        while not holds():
            self._more.clear()
            await self._more.wait()

    def hold_confirms(self) -> None:
        """Hold the broker's confirms back from now on."""
        self._holding = True

    def release_confirms(self) -> None:
        """Forward the confirms that were held back, and all that follow."""
        self._holding = False
        held, self._held = self._held, []
        for link, data in held:
            link.to_worker.write(data)

    def refuse_next(self) -> None:
        """Turn the next confirm into a nack."""
        self._confirms_to_refuse += 1

    def freeze(self) -> None:
        """Forward nothing more, and keep both sides open."""
        self._flowing.clear()

    def cut(self, *links: Link) -> None:
        """Reset these connections, by default all."""
        for link in links or self.open_links:
            link.to_worker.transport.abort()
            link.to_broker.transport.abort()

    def break_channel(self) -> None:
        """Make the broker close the worker's channel with 406, by an ack of an unknown tag."""
        link = self.consuming
        channel = next(at for (at, _), queue in link.consumers.items() if queue == self._queue)
        method = spec.Basic.Ack(delivery_tag=_UNKNOWN_TAG)
        link.to_broker.write(frames.Method(channel, method).marshal())

    # The relay.

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of the worker."""
        from_broker, to_broker = await asyncio.open_connection(*self._target)
        link = Link(writer, to_broker)
        self.links.append(link)
        pumps = [
            asyncio.ensure_future(self._pump_out(link, reader)),
            asyncio.ensure_future(self._pump_in(link, from_broker)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.closed = True
            self._more.set()
            for each in (writer, to_broker):
                each.transport.abort()

    async def _pump_out(self, link: Link, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            link.to_broker.write(await reader.readexactly(_GREETING))
            async for data, frame in _frames(reader):
                await self._flowing.wait()
                self._record_sent(link, frame)
                link.to_broker.write(data)
                await link.to_broker.drain()
                self._more.set()

    async def _pump_in(self, link: Link, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async for data, frame in _frames(reader):
                await self._flowing.wait()
                method = frame.method if isinstance(frame, frames.Method) else None
                if isinstance(method, spec.Basic.Ack | spec.Basic.Nack):
                    if self._holding:
                        self._held.append((link, data))
                        continue
                    if self._confirms_to_refuse:
                        self._confirms_to_refuse -= 1
                        refusal = spec.Basic.Nack(method.delivery_tag, method.multiple)
                        data = frames.Method(frame.channel_number, refusal).marshal()
                self._record_received(link, frame)
                link.to_worker.write(data)
                await link.to_worker.drain()
                self._more.set()

    def _record_sent(self, link: Link, frame: Any) -> None:
        link.frames += 1
        if not isinstance(frame, frames.Method):
            return
        channel, method = frame.channel_number, frame.method
        link.sent.append(method)
        match method:
            case spec.Basic.Consume():
                link.requested.setdefault(channel, []).append(method.queue)
            case spec.Basic.Ack() | spec.Basic.Nack() | spec.Basic.Reject():
                self._record_settled(link, channel, method)
            case spec.Channel.Close() | spec.Channel.CloseOk():
                link.unsettled.pop(channel, None)

    def _record_settled(self, link: Link, channel: int, method: Any) -> None:
        tags = link.unsettled.get(channel, set())
        upto = method.delivery_tag
        if getattr(method, "multiple", False):
            done = {tag for tag in tags if tag <= upto}
        else:
            done = tags & {upto}
        tags -= done
        self.settled += [type(method).__name__.lower()] * len(done)

    def _record_received(self, link: Link, frame: Any) -> None:
        if not isinstance(frame, frames.Method):
            return
        channel, method = frame.channel_number, frame.method
        match method:
            case spec.Basic.ConsumeOk():
                queue = link.requested[channel].pop(0)
                link.consumers[channel, method.consumer_tag] = queue
                self.consumed += queue == self._queue
            case spec.Basic.Deliver():
                if link.consumers.get((channel, method.consumer_tag)) == self._queue:
                    link.unsettled.setdefault(channel, set()).add(method.delivery_tag)
                    self.most_unsettled = max(self.most_unsettled, self.unsettled)
            case spec.Basic.Return():
                self.returned += 1
            case spec.Channel.Close():
                link.unsettled.pop(channel, None)


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, Any]]:
    """Yield each frame as bytes and as pika reads it."""
    while True:
        head = await reader.readexactly(7)
        data = head + await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
        _, frame = frames.decode_frame(data)
        yield data, frame


@asynccontextmanager
async def open_proxy(
    parameters: BrokerParameters, queue: str
) -> AsyncIterator[tuple[Proxy, BrokerParameters]]:
    """Put a proxy before the broker; ``queue`` is the work queue it counts."""
    proxy = Proxy(parameters.host, parameters.port, queue)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError, OSError):
            await proxy.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield proxy, dataclasses.replace(parameters, host="127.0.0.1", port=port)
    finally:
        server.close()
        proxy.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
