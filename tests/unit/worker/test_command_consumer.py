"""The orders' stream over losses: nothing is missed, little comes twice, trouble is said once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.command import CommandKind, WorkerCommand, encode
from taskqueue.contract.names import CONTROL_STREAM
from taskqueue.worker.command_consumer import CommandConsumer

pytestmark = pytest.mark.looptime

NUMBERS = itertools.count()


@dataclass
class FakeStream:
    """Messages by offset, sent in chunks as a stream's are; broken as the test says."""

    messages: dict[int, bytes] = field(default_factory=dict)
    last_chunk: int = 0
    refusal: ChannelRefused | None = None
    begun_at: list[int | str] = field(default_factory=list)
    channels: list[FakeChannel] = field(default_factory=list)

    on_begin: Callable[[], None] = lambda: None
    #: No consumer but one of the last chunk is sent anything from this offset on.
    stalls_at: int | None = None
    #: Of those that have one.
    message_ids: dict[int, str] = field(default_factory=dict)

    def add(self, offset: int, token: str, *, new_chunk: bool = True) -> None:
        self.put(
            offset, WorkerCommand(CommandKind.CANCEL, token=token, uid="u"), new_chunk=new_chunk
        )

    def drain(
        self, offset: int, *, namespace: str = "shop", pod: str = "pod-1", new_chunk: bool = True
    ) -> None:
        order = WorkerCommand(CommandKind.DRAIN, namespace=namespace, pod=pod)
        self.put(offset, order, new_chunk=new_chunk)

    def put(self, offset: int, order: WorkerCommand, *, new_chunk: bool = True) -> None:
        self.messages[offset] = encode(order)
        self.message_ids[offset] = f"m-{next(NUMBERS)}"
        if new_chunk:
            self.last_chunk = offset
        for channel in self.channels:
            channel.send()


class FakeChannel:
    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self._next: int | None = None
        self._take: Callable[[Delivery], None] = lambda delivery: None
        self._tag = 0
        self._unacknowledged = 0
        self._prefetch = 0
        self.on_cancel: Callable[[str], None] = lambda reason: None
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def set_prefetch(self, count: int) -> None:
        self._prefetch = count

    async def declare_queue(self, name: str, *, passive: bool) -> int:
        assert (name, passive) == (CONTROL_STREAM, True)
        await asyncio.sleep(0.001)
        return 0  # a stream's count lags by seconds: of no use

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        on_cancel: Callable[[str], None],
        *,
        arguments: dict[str, Any],
    ) -> str:
        if self._stream.refusal is not None:
            self.closed.set_result((self._stream.refusal.code, self._stream.refusal.text))
            raise self._stream.refusal
        begin = arguments["x-stream-offset"]
        if begin != "last":
            self._stream.begun_at.append(begin)
            self._stream.on_begin()
        numbers = {"last": self._stream.last_chunk, "first": 0}
        self._next = numbers.get(begin, begin)
        self._take, self.on_cancel = on_delivery, on_cancel
        asyncio.get_running_loop().call_soon(self.send)
        return "tag"

    async def cancel(self, tag: str) -> None:
        self._next = None

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self._unacknowledged -= self._unacknowledged if multiple else 1
        asyncio.get_running_loop().call_soon(self.send)

    def send(self) -> None:
        """Send what the prefetch allows."""
        while self._next is not None and self._unacknowledged < self._prefetch:
            left = [offset for offset in self._stream.messages if offset >= (self._next or 0)]
            if not left:
                return
            offset = min(left)
            if self._stream.stalls_at == offset and len(self._stream.begun_at) > 0:
                return
            self._next = offset + 1
            self._tag += 1
            self._unacknowledged += 1
            properties = BasicProperties(
                headers={"x-stream-offset": offset},
                message_id=self._stream.message_ids.get(offset),
            )
            self._take(
                Delivery(
                    cast(Channel, self),
                    self._tag,
                    False,
                    "",
                    CONTROL_STREAM,
                    properties,
                    self._stream.messages[offset],
                )
            )

    def lose(self) -> None:
        self._next = None
        self.closed.set_result((0, "lost"))

    async def close(self) -> None:
        self._next = None
        if not self.closed.done():
            self.closed.set_result((0, "closed by us"))


class FakeConnection:
    parameters = SimpleNamespace(username="worker-1")

    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def channel(self) -> FakeChannel:
        if self.closed.done():
            raise BrokerUnavailable("lost")
        self._stream.channels.append(FakeChannel(self._stream))
        return self._stream.channels[-1]


class Scene:
    """A control line over one connection after the other."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.tokens: list[str] = []
        self.caught_up: list[list[str]] = []
        self.drains = 0
        #: The connection breaks when so many orders have come.
        self.breaks_at: int | None = None
        self.line = CommandConsumer(
            namespace="shop", queue="q", pod="pod-1", on_order=self._order, on_drain=self._drain
        )

    async def connect(self, seconds: float = 1) -> None:
        self.connection = FakeConnection(self.stream)
        self.task = asyncio.create_task(
            self.line.follow(cast(Connection, self.connection), self._know)
        )
        await asyncio.sleep(seconds)

    async def lose(self) -> None:
        self._break()
        await asyncio.wait_for(self.task, 1)

    def _break(self) -> None:
        self.connection.closed.set_result("lost")
        self.stream.channels[-1].lose()

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def _order(self, order: WorkerCommand) -> None:
        assert order.kind is not CommandKind.DRAIN
        self.tokens.append(order.token)
        if len(self.tokens) == self.breaks_at:
            self._break()

    def _drain(self) -> None:
        self.drains += 1

    def _know(self) -> None:
        self.caught_up.append(list(self.tokens))


def filled(count: int) -> FakeStream:
    stream = FakeStream()
    for offset in range(count):
        stream.add(offset, f"k.{offset}")
    return stream


async def test_an_empty_stream_is_known_at_once() -> None:
    scene = Scene(FakeStream())
    await scene.connect()
    assert scene.caught_up == [[]]
    scene.stream.add(0, "a")
    assert scene.tokens == ["a"]
    await scene.end()


async def test_all_old_orders_are_taken_before_it_has_caught_up() -> None:
    scene = Scene(filled(2_000))
    await scene.connect()
    assert [len(tokens) for tokens in scene.caught_up] == [2_000]
    await scene.end()


async def test_the_whole_last_chunk_counts_as_old() -> None:
    stream = filled(3)
    for offset in range(3, 1_500):
        stream.add(offset, f"k.{offset}", new_chunk=False)
    scene = Scene(stream)
    await scene.connect()
    assert [len(tokens) for tokens in scene.caught_up] == [1_500]
    await scene.end()


async def test_after_a_loss_it_goes_on_behind_the_last_one() -> None:
    stream = filled(3)
    scene = Scene(stream)
    await scene.connect()
    await scene.lose()
    await scene.connect()
    assert scene.caught_up == [["k.0", "k.1", "k.2"]] * 2, "nothing new, and nothing again"
    await scene.lose()
    stream.add(7, "new")  # offsets have gaps
    await scene.connect()
    assert scene.stream.begun_at == ["first", 3, 3]
    assert scene.caught_up[-1][3:] == ["new"]
    await scene.end()


@pytest.mark.parametrize("count", [0, 2])
async def test_a_stream_that_ends_before_the_last_order_seen_was_made_anew(count: int) -> None:
    scene = Scene(filled(5))
    await scene.connect()
    await scene.lose()
    scene.stream.messages = filled(count).messages
    scene.stream.last_chunk = max(count - 1, 0)
    await scene.connect()
    assert scene.stream.begun_at == ["first", "first"]
    assert len(scene.tokens) == 5 + count
    await scene.end()


async def test_a_stream_deleted_under_it_is_read_from_its_beginning() -> None:
    scene = Scene(filled(5))
    await scene.connect()
    scene.stream.channels[-1].on_cancel("the queue was deleted")
    await asyncio.sleep(1)
    assert scene.stream.begun_at == ["first", "first"]
    await scene.end()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (404, "taskqueue.control does not exist yet: start the operator"),
        (403, r"'worker-1' may not read taskqueue.control: grant it the read permission "),
        (403, r"^taskqueue\.(shop\.q|control)$"),
    ],
)
async def test_a_refusal_is_explained_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, code: int, words: str
) -> None:
    stream = filled(1)
    stream.refusal = ChannelRefused(code, "NO")
    scene = Scene(stream)
    await scene.connect(60)
    (waiting,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert waiting.getMessage() == "control.waiting"
    assert words in vars(waiting)["fields"]["reason"]
    assert scene.caught_up == []
    assert 8 <= len(stream.channels) <= 20, "with growing pauses of at most 10 s"
    stream.refusal = None
    await asyncio.sleep(11)
    assert scene.caught_up == [["k.0"]]
    await scene.end()


async def test_what_is_no_order_is_told_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    stream = filled(3)
    stream.messages[1] = b"dance!"
    scene = Scene(stream)
    await scene.connect()
    assert scene.caught_up == [["k.0", "k.2"]]
    assert "order.malformed" in [record.getMessage() for record in caplog.records]
    await scene.end()


# Orders to drain.


@pytest.mark.parametrize(
    ("namespace", "pod", "drains"),
    [("shop", "pod-1", 1), ("shop", "pod-2", 0), ("other", "pod-1", 0)],
)
async def test_an_order_to_drain_is_for_one_pod(namespace: str, pod: str, drains: int) -> None:
    scene = Scene(FakeStream())
    await scene.connect()
    scene.stream.drain(0, namespace=namespace, pod=pod)
    assert (scene.drains, scene.tokens) == (drains, [])
    await scene.end()


@pytest.mark.parametrize("chunk", [True, False], ids=["chunks", "one chunk"])
async def test_an_order_to_drain_counts_once_all_the_past_is_known(chunk: bool) -> None:
    stream = FakeStream()
    for offset in range(3):
        stream.drain(offset, new_chunk=chunk)
    scene = Scene(stream)
    await scene.connect()
    assert (scene.drains, len(scene.caught_up)) == (0, 1)
    stream.drain(3)
    assert scene.drains == 1
    await scene.end()


async def test_a_drain_that_comes_while_the_past_is_read_counts() -> None:
    stream = FakeStream()
    stream.drain(4)
    stream.on_begin = lambda: stream.drain(5, new_chunk=False)  # its end is known by then
    scene = Scene(stream)
    await scene.connect()
    assert (scene.drains, len(scene.caught_up)) == (1, 1)
    await scene.end()


async def test_a_stream_whose_end_is_cut_off_before_it_is_read_is_looked_at_again() -> None:
    stream = FakeStream()
    for offset in range(5):
        stream.add(offset, f"k.{offset}")
    stream.on_begin = stream.messages.clear
    scene = Scene(stream)
    await scene.connect()
    assert not scene.caught_up
    await asyncio.sleep(15)
    assert (scene.tokens, len(scene.caught_up)) == ([], 1)
    stream.add(9, "k.9")
    assert scene.tokens == ["k.9"]
    await scene.end()


async def test_a_stream_that_is_read_slowly_is_not_begun_again() -> None:
    stream = FakeStream()
    for offset in range(5):
        stream.add(offset, f"k.{offset}")
    stream.stalls_at = 0
    scene = Scene(stream)
    await scene.connect()
    for offset in range(1, 6):
        await asyncio.sleep(8)
        stream.stalls_at = offset
        stream.channels[-1].send()
    assert (len(scene.tokens), stream.begun_at) == (5, ["first"])
    await scene.end()


async def test_a_drain_given_while_the_connection_is_lost_counts() -> None:
    stream = FakeStream()
    stream.drain(0)
    scene = Scene(stream)
    await scene.connect()
    await scene.lose()
    stream.drain(1)
    stream.add(2, "k.2")
    await scene.connect()
    assert (scene.drains, scene.tokens) == (1, ["k.2"])
    await scene.end()


async def test_past_drains_do_not_count_where_the_first_connection_was_lost_in_between() -> None:
    scene = Scene(filled(2_000))
    scene.stream.drain(1_000)
    scene.stream.drain(1_999)
    scene.breaks_at = 1_200
    await scene.connect()
    await asyncio.wait_for(scene.task, 1)
    assert (len(scene.tokens), scene.caught_up) == (1_200, [])
    await scene.connect()
    assert (scene.drains, len(scene.caught_up)) == (0, 1)
    await scene.end()


@pytest.mark.parametrize("identified", [True, False], ids=["by message", "by offset"])
async def test_a_past_drain_that_is_read_again_does_not_count_either(identified: bool) -> None:
    stream = FakeStream()
    stream.drain(0)
    stream.drain(1)
    if not identified:
        stream.message_ids.clear()
    scene = Scene(stream)
    await scene.connect()
    stream.channels[-1].on_cancel("a node of the broker was stopped")
    await asyncio.sleep(1)
    assert stream.begun_at == ["first", "first"]
    assert scene.drains == 0
    await scene.end()


async def test_a_drain_in_a_stream_made_anew_counts_whatever_its_offset() -> None:
    stream = FakeStream()
    stream.drain(0)
    scene = Scene(stream)
    await scene.connect()
    stream.messages.clear()
    stream.drain(0)
    stream.channels[-1].on_cancel("the queue was deleted")
    await asyncio.sleep(1)
    assert scene.drains == 1
    await scene.end()
