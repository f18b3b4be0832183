"""The control stream over losses: commands are not missed, refusals are logged once."""

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
from taskqueue.contract.command import WorkerCommand, encode
from taskqueue.contract.names import CONTROL_STREAM
from taskqueue.model.command import CommandKind
from taskqueue.worker.command_consumer import EMPTY_SECONDS, CommandConsumer

pytestmark = pytest.mark.looptime

NUMBERS = itertools.count()


@dataclass
class FakeStream:
    """Messages by offset, sent in chunks as a stream's are; broken as the test says."""

    messages: dict[int, bytes] = field(default_factory=dict)
    last_chunk: int = 0
    refusal: ChannelRefused | None = None
    started_at: list[int | str] = field(default_factory=list)
    channels: list[FakeChannel] = field(default_factory=list)

    on_start: Callable[[], None] = lambda: None
    #: No consumer but one of the last chunk is sent anything from this offset on.
    stalls_at: int | None = None
    #: How long a consumer of the last chunk is sent nothing, as long as it is not committed.
    uncommitted_seconds: float = 0.0
    #: Of those that have one.
    message_ids: dict[int, str] = field(default_factory=dict)

    def add(self, offset: int, token: str, *, new_chunk: bool = True) -> None:
        self.put(
            offset, WorkerCommand(CommandKind.CANCEL, token=token, uid="u"), new_chunk=new_chunk
        )

    def drain(
        self, offset: int, *, namespace: str = "shop", pod: str = "pod-1", new_chunk: bool = True
    ) -> None:
        command = WorkerCommand(CommandKind.DRAIN, namespace=namespace, pod=pod)
        self.put(offset, command, new_chunk=new_chunk)

    def put(self, offset: int, command: WorkerCommand, *, new_chunk: bool = True) -> None:
        self.messages[offset] = encode(command)
        self.message_ids[offset] = f"m-{next(NUMBERS)}"
        if new_chunk:
            self.last_chunk = offset
        for channel in self.channels:
            channel.send()


class FakeChannel:
    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self._next: int | None = None
        self._on_delivery: Callable[[Delivery], None] = lambda delivery: None
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
            self._stream.started_at.append(begin)
            self._stream.on_start()
        numbers = {"last": self._stream.last_chunk, "first": 0}
        self._next = numbers.get(begin, begin)
        self._on_delivery, self.on_cancel = on_delivery, on_cancel
        delay = self._stream.uncommitted_seconds if begin == "last" else 0.0
        asyncio.get_running_loop().call_later(delay, self.send)
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
            if self._stream.stalls_at == offset and len(self._stream.started_at) > 0:
                return
            self._next = offset + 1
            self._tag += 1
            self._unacknowledged += 1
            properties = BasicProperties(
                headers={"x-stream-offset": offset},
                message_id=self._stream.message_ids.get(offset),
            )
            self._on_delivery(
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


class CommandHarness:
    """A command consumer on one connection after another."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.tokens: list[str] = []
        self.caught_up: list[list[str]] = []
        self.drains = 0
        #: The connection breaks after this many commands.
        self.breaks_at: int | None = None
        self.consumer = CommandConsumer(
            namespace="shop",
            queue="q",
            pod="pod-1",
            on_command=self._on_command,
            on_drain=self._drain,
        )

    async def connect(self, seconds: float = EMPTY_SECONDS + 1) -> None:
        self.connection = FakeConnection(self.stream)
        self.task = asyncio.create_task(
            self.consumer.follow(cast(Connection, self.connection), self._on_caught_up)
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

    def _on_command(self, command: WorkerCommand) -> None:
        assert command.kind is not CommandKind.DRAIN
        self.tokens.append(command.token)
        if len(self.tokens) == self.breaks_at:
            self._break()

    def _drain(self) -> None:
        self.drains += 1

    def _on_caught_up(self) -> None:
        self.caught_up.append(list(self.tokens))


def filled(count: int) -> FakeStream:
    stream = FakeStream()
    for offset in range(count):
        stream.add(offset, f"k.{offset}")
    return stream


async def test_an_empty_stream_is_caught_up_with_after_a_silence() -> None:
    harness = CommandHarness(FakeStream())
    await harness.connect(EMPTY_SECONDS - 1)
    assert harness.caught_up == []
    await asyncio.sleep(2)
    assert harness.caught_up == [[]]
    harness.stream.add(0, "a")
    assert harness.tokens == ["a"]
    await harness.end()


async def test_all_past_commands_are_handled_before_it_has_caught_up() -> None:
    harness = CommandHarness(filled(2_000))
    await harness.connect()
    assert [len(tokens) for tokens in harness.caught_up] == [2_000]
    await harness.end()


async def test_a_stream_whose_last_chunk_is_not_committed_is_not_taken_for_empty() -> None:
    stream = filled(3)
    stream.drain(3)
    stream.uncommitted_seconds = 3
    harness = CommandHarness(stream)
    await harness.connect(4)
    assert harness.caught_up == [["k.0", "k.1", "k.2"]]
    assert harness.drains == 0, "that command was for another process"
    assert stream.started_at == ["first"]
    await harness.end()


async def test_the_whole_last_chunk_counts_as_old() -> None:
    stream = filled(3)
    for offset in range(3, 1_500):
        stream.add(offset, f"k.{offset}", new_chunk=False)
    harness = CommandHarness(stream)
    await harness.connect()
    assert [len(tokens) for tokens in harness.caught_up] == [1_500]
    await harness.end()


async def test_consumer_continues_after_the_last_command_after_a_loss() -> None:
    stream = filled(3)
    harness = CommandHarness(stream)
    await harness.connect()
    await harness.lose()
    await harness.connect()
    assert harness.caught_up == [["k.0", "k.1", "k.2"]] * 2, "nothing new, and nothing again"
    await harness.lose()
    stream.add(7, "new")  # offsets have gaps
    await harness.connect()
    assert harness.stream.started_at == ["first", 3, 3]
    assert harness.caught_up[-1][3:] == ["new"]
    await harness.end()


@pytest.mark.parametrize("count", [0, 2])
async def test_a_stream_that_ends_before_the_last_command_seen_is_read_from_its_beginning(
    count: int,
) -> None:
    harness = CommandHarness(filled(5))
    await harness.connect()
    await harness.lose()
    harness.stream.messages = filled(count).messages
    harness.stream.last_chunk = max(count - 1, 0)
    await harness.connect()
    assert harness.stream.started_at == ["first", "first"]
    assert len(harness.tokens) == 5 + count
    await harness.end()


async def test_a_stream_deleted_under_it_is_read_from_its_beginning() -> None:
    harness = CommandHarness(filled(5))
    await harness.connect()
    harness.stream.channels[-1].on_cancel("the queue was deleted")
    await asyncio.sleep(1)
    assert harness.stream.started_at == ["first", "first"]
    await harness.end()


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
    harness = CommandHarness(stream)
    await harness.connect(60)
    (waiting,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert waiting.getMessage() == "command_consumer.lost"
    assert words in vars(waiting)["fields"]["reason"]
    assert harness.caught_up == []
    assert 8 <= len(stream.channels) <= 20, "with growing pauses of at most 10 s"
    stream.refusal = None
    await asyncio.sleep(11)
    assert harness.caught_up == [["k.0"]]
    await harness.end()


async def test_a_malformed_command_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    stream = filled(3)
    stream.messages[1] = b"dance!"
    harness = CommandHarness(stream)
    await harness.connect()
    assert harness.caught_up == [["k.0", "k.2"]]
    assert "command.invalid" in [record.getMessage() for record in caplog.records]
    await harness.end()


# Commands to drain.


@pytest.mark.parametrize(
    ("namespace", "pod", "drains"),
    [("shop", "pod-1", 1), ("shop", "pod-2", 0), ("other", "pod-1", 0)],
)
async def test_a_command_to_drain_is_for_one_pod(namespace: str, pod: str, drains: int) -> None:
    harness = CommandHarness(FakeStream())
    await harness.connect()
    harness.stream.drain(0, namespace=namespace, pod=pod)
    assert (harness.drains, harness.tokens) == (drains, [])
    await harness.end()


@pytest.mark.parametrize("chunk", [True, False], ids=["chunks", "one chunk"])
async def test_a_command_to_drain_counts_once_all_the_past_is_on_caught_upn(chunk: bool) -> None:
    stream = FakeStream()
    for offset in range(3):
        stream.drain(offset, new_chunk=chunk)
    harness = CommandHarness(stream)
    await harness.connect()
    assert (harness.drains, len(harness.caught_up)) == (0, 1)
    stream.drain(3)
    assert harness.drains == 1
    await harness.end()


async def test_a_drain_that_comes_while_the_past_is_read_counts() -> None:
    stream = FakeStream()
    stream.drain(4)
    stream.on_start = lambda: stream.drain(5, new_chunk=False)  # its end is known by then
    harness = CommandHarness(stream)
    await harness.connect()
    assert (harness.drains, len(harness.caught_up)) == (1, 1)
    await harness.end()


async def test_a_stream_whose_end_is_cut_off_before_it_is_read_is_consumed_again() -> None:
    stream = FakeStream()
    for offset in range(5):
        stream.add(offset, f"k.{offset}")
    stream.on_start = stream.messages.clear
    harness = CommandHarness(stream)
    await harness.connect(1)
    assert not harness.caught_up
    await asyncio.sleep(15)
    assert (harness.tokens, len(harness.caught_up)) == ([], 1)
    stream.add(9, "k.9")
    assert harness.tokens == ["k.9"]
    await harness.end()


async def test_a_stream_that_is_read_slowly_is_not_consumed_again() -> None:
    stream = FakeStream()
    for offset in range(5):
        stream.add(offset, f"k.{offset}")
    stream.stalls_at = 0
    harness = CommandHarness(stream)
    await harness.connect(1)
    for offset in range(1, 6):
        await asyncio.sleep(8)
        stream.stalls_at = offset
        stream.channels[-1].send()
    assert (len(harness.tokens), stream.started_at) == (5, ["first"])
    await harness.end()


async def test_a_drain_given_while_the_connection_is_lost_counts() -> None:
    stream = FakeStream()
    stream.drain(0)
    harness = CommandHarness(stream)
    await harness.connect()
    await harness.lose()
    stream.drain(1)
    stream.add(2, "k.2")
    await harness.connect()
    assert (harness.drains, harness.tokens) == (1, ["k.2"])
    await harness.end()


async def test_past_drains_do_not_count_where_the_first_connection_was_lost_in_between() -> None:
    harness = CommandHarness(filled(2_000))
    harness.stream.drain(1_000)
    harness.stream.drain(1_999)
    harness.breaks_at = 1_200
    await harness.connect()
    await asyncio.wait_for(harness.task, 1)
    assert (len(harness.tokens), harness.caught_up) == (1_200, [])
    await harness.connect()
    assert (harness.drains, len(harness.caught_up)) == (0, 1)
    await harness.end()


@pytest.mark.parametrize("identified", [True, False], ids=["by message", "by offset"])
async def test_a_past_drain_that_is_read_again_does_not_count_either(identified: bool) -> None:
    stream = FakeStream()
    stream.drain(0)
    stream.drain(1)
    if not identified:
        stream.message_ids.clear()
    harness = CommandHarness(stream)
    await harness.connect()
    stream.channels[-1].on_cancel("a node of the broker was stopped")
    await asyncio.sleep(1)
    assert stream.started_at == ["first", "first"]
    assert harness.drains == 0
    await harness.end()


async def test_a_drain_in_a_stream_declared_again_counts_whatever_its_offset() -> None:
    stream = FakeStream()
    stream.drain(0)
    harness = CommandHarness(stream)
    await harness.connect()
    stream.messages.clear()
    stream.drain(0)
    stream.channels[-1].on_cancel("the queue was deleted")
    await asyncio.sleep(1)
    assert harness.drains == 1
    await harness.end()
