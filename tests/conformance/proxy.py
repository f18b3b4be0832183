"""A relay between a worker and the broker that understands AMQP frames.

It sees what the worker asks of the broker and settles, and can hold confirms back, turn one into a
refusal, freeze or cut connections, and have the broker close a channel.
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

#: Length of the words a client begins with, before any frame.
_GREETING = 8

#: A delivery tag that no worker ever has.
_UNKNOWN_TAG = 999_999_999


@dataclass(eq=False)
class Link:
    """One connection of the worker."""

    to_worker: asyncio.StreamWriter
    to_broker: asyncio.StreamWriter
    #: Methods of the worker, in their order.
    sent: list[Any] = field(default_factory=list)
    #: How many frames of the worker were handed on, heartbeats among them.
    frames: int = 0
    #: Queue by channel and consumer tag.
    consumers: dict[tuple[int, str], str] = field(default_factory=dict)
    #: Queues that are being consumed and have no tag yet, by channel.
    asked: dict[int, list[str]] = field(default_factory=dict)
    #: Deliveries of the work queue that are not settled, by channel.
    in_hand: dict[int, set[int]] = field(default_factory=dict)
    closed: bool = False

    def sent_methods(self, kind: type) -> list[Any]:
        """Return what the worker sent of a kind."""
        return [method for method in self.sent if isinstance(method, kind)]

    @property
    def publishes(self) -> bool:
        """Whether the worker has published by it."""
        return bool(self.sent_methods(spec.Basic.Publish))

    def consumes(self, queue: str) -> bool:
        """Whether the worker consumes or has consumed a queue by it."""
        return any(method.queue == queue for method in self.sent_methods(spec.Basic.Consume))


class Tap:
    """What a worker's connections go through."""

    def __init__(self, host: str, port: int, queue: str) -> None:
        self._target = (host, port)
        self._queue = queue
        self.links: list[Link] = []
        #: Most deliveries of the work queue in the worker's hands at once.
        self.most_in_hand = 0
        #: How deliveries of the work queue were settled: ack, nack or reject, each once.
        self.settled: list[str] = []
        #: How often the work queue has been consumed, as the broker confirmed.
        self.consumed = 0
        #: Messages the broker returned to the worker.
        self.returned = 0
        self._to_refuse = 0
        self._holding = False
        self._held: list[tuple[Link, bytes]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._more = asyncio.Event()

    # What a scene does and looks at.

    @property
    def living(self) -> list[Link]:
        """The links that are open."""
        return [link for link in self.links if not link.closed]

    @property
    def consuming(self) -> Link:
        """The link work comes in by."""
        return next(link for link in reversed(self.living) if link.consumes(self._queue))

    @property
    def publishing(self) -> Link:
        """The link outcomes leave by."""
        return next(link for link in reversed(self.living) if link.publishes)

    @property
    def in_hand(self) -> int:
        """Deliveries of the work queue that the worker has not settled."""
        return sum(len(tags) for link in self.living for tags in link.in_hand.values())

    def sent(self, kind: type) -> list[Any]:
        """Return what the worker sent of a kind, over all links."""
        return [method for link in self.links for method in link.sent_methods(kind)]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that frames can change."""
        while not holds():
            self._more.clear()
            await self._more.wait()

    def hold_confirms(self) -> None:
        """Keep the broker's confirms back from now on."""
        self._holding = True

    def release_confirms(self) -> None:
        """Hand on the confirms that were kept back, and all that follow."""
        self._holding = False
        held, self._held = self._held, []
        for link, data in held:
            link.to_worker.write(data)

    def refuse_next(self) -> None:
        """Turn the next confirm into a refusal."""
        self._to_refuse += 1

    def freeze(self) -> None:
        """Let nothing through any more, and keep both sides open."""
        self._flowing.clear()

    def cut(self, *links: Link) -> None:
        """Reset these connections, by default all."""
        for link in links or self.living:
            link.to_worker.transport.abort()
            link.to_broker.transport.abort()

    def spoil_channel(self) -> None:
        """Have the broker close the worker's channel with 406, by an acknowledgement of nothing."""
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
                self._note_sent(link, frame)
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
                    if self._to_refuse:
                        self._to_refuse -= 1
                        refusal = spec.Basic.Nack(method.delivery_tag, method.multiple)
                        data = frames.Method(frame.channel_number, refusal).marshal()
                self._note_received(link, frame)
                link.to_worker.write(data)
                await link.to_worker.drain()
                self._more.set()

    def _note_sent(self, link: Link, frame: Any) -> None:
        link.frames += 1
        if not isinstance(frame, frames.Method):
            return
        channel, method = frame.channel_number, frame.method
        link.sent.append(method)
        match method:
            case spec.Basic.Consume():
                link.asked.setdefault(channel, []).append(method.queue)
            case spec.Basic.Ack() | spec.Basic.Nack() | spec.Basic.Reject():
                self._note_settled(link, channel, method)
            case spec.Channel.Close() | spec.Channel.CloseOk():
                link.in_hand.pop(channel, None)

    def _note_settled(self, link: Link, channel: int, method: Any) -> None:
        tags = link.in_hand.get(channel, set())
        upto = method.delivery_tag
        if getattr(method, "multiple", False):
            done = {tag for tag in tags if tag <= upto}
        else:
            done = tags & {upto}
        tags -= done
        self.settled += [type(method).__name__.lower()] * len(done)

    def _note_received(self, link: Link, frame: Any) -> None:
        if not isinstance(frame, frames.Method):
            return
        channel, method = frame.channel_number, frame.method
        match method:
            case spec.Basic.ConsumeOk():
                queue = link.asked[channel].pop(0)
                link.consumers[channel, method.consumer_tag] = queue
                self.consumed += queue == self._queue
            case spec.Basic.Deliver():
                if link.consumers.get((channel, method.consumer_tag)) == self._queue:
                    link.in_hand.setdefault(channel, set()).add(method.delivery_tag)
                    self.most_in_hand = max(self.most_in_hand, self.in_hand)
            case spec.Basic.Return():
                self.returned += 1
            case spec.Channel.Close():
                link.in_hand.pop(channel, None)


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, Any]]:
    """Yield each frame as bytes and as pika reads it."""
    while True:
        head = await reader.readexactly(7)
        data = head + await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
        _, frame = frames.decode_frame(data)
        yield data, frame


@asynccontextmanager
async def tap_to(
    parameters: BrokerParameters, queue: str
) -> AsyncIterator[tuple[Tap, BrokerParameters]]:
    """Put a tap before the broker; ``queue`` is the work queue it watches."""
    tap = Tap(parameters.host, parameters.port, queue)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError, OSError):
            await tap.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield tap, dataclasses.replace(parameters, host="127.0.0.1", port=port)
    finally:
        server.close()
        tap.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
