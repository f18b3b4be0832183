"""A dispatcher and a recorder between a publisher, a status writer and a channel of the test's."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import orjson
from pika.spec import BasicProperties

from taskqueue.broker.connection import Channel, Delivery
from taskqueue.broker.contract import DEAD_EXCHANGE, OUTCOMES_EXCHANGE, WorkMessage, parse_work
from taskqueue.broker.events import AttemptEvent, EventError, EventKind, encode
from taskqueue.broker.publisher import OnSettled, Publisher, Settled
from taskqueue.cluster.status_writer import OnFate, Refused, StatusWriter, Written
from taskqueue.domain.queue import QueueConfig
from taskqueue.domain.task import Backoff, Policy, Task, TaskSpec, TaskStatus
from taskqueue.domain.token import TokenKeys
from taskqueue.engine.dispatcher import Dispatcher
from taskqueue.engine.entry import Entry
from taskqueue.engine.recorder import Recorder

KEY = ("shop", "q")
EPOCH = 1_700_000_000.0
TOKENS = TokenKeys(current="k", keys={"k": b"secret"})


#: No result of the test's own.
MISSING: Any = object()


def now() -> float:
    return EPOCH + asyncio.get_running_loop().time()


@dataclass(frozen=True)
class Publish:
    """What was handed to the publisher."""

    message: WorkMessage
    settle: OnSettled


class FakePublisher:
    """Keeps what is published; the test settles it."""

    def __init__(self) -> None:
        self.published: list[Publish] = []

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        on_settled: OnSettled,
    ) -> None:
        message = parse_work(properties, body)
        assert isinstance(message, WorkMessage)
        assert (exchange, key) == ("taskqueue.work", "shop.q")
        self.published.append(Publish(message, on_settled))

    @property
    def names(self) -> list[str]:
        return [one.message.task for one in self.published]

    def settle(self, verdict: Settled, text: str = "") -> None:
        """Settle everything published since."""
        published, self.published = self.published, []
        for one in published:
            one.settle(verdict, text)


@dataclass
class Write:
    """A status on its way to the API server."""

    path: str
    status: dict[str, Any]
    urgent: bool
    on_fate: OnFate
    at: float

    def succeed(self, generation: int = 1) -> None:
        self.on_fate(Written(generation))

    def refuse(self, status: int, message: str = "no") -> None:
        self.on_fate(Refused(status, message))


class FakeWriter:
    """Keeps what is to be written; the test tells its fate."""

    def __init__(self) -> None:
        self.writes: list[Write] = []

    def put(self, path: str, body: bytes, on_fate: OnFate, *, urgent: bool = False) -> None:
        same, change = orjson.loads(body)
        assert (same["op"], same["path"]) == ("test", "/metadata/uid")
        at = asyncio.get_running_loop().time()
        self.writes.append(Write(path, change["value"], urgent, on_fate, at))

    @property
    def phases(self) -> list[str]:
        return [write.status["phase"] for write in self.writes]


class FakeChannel:
    """Keeps what is acknowledged."""

    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        assert not multiple
        self.acked.append(delivery_tag)


class Engine:
    """The parts under test, wired as the engine wires them."""

    def __init__(self, *, max_published: int = 1000, **policy: Any) -> None:
        self.publisher = FakePublisher()
        self.writer = FakeWriter()
        self.channel = FakeChannel()
        self.entries: dict[str, Entry] = {}
        self.given_up: list[tuple[Delivery, str]] = []
        self.recorded: list[str] = []
        self.refused: list[str] = []
        self.missing = 0
        self._tags = itertools.count(1)
        self.dispatcher = Dispatcher(
            KEY, tokens=TOKENS, clock=now, on_backlog=lambda: None, on_missing=self._on_missing
        )
        self.dispatcher.config = QueueConfig(
            namespace="shop",
            name="q",
            uid="queue",
            generation=1,
            connection_secret="rabbit",
            max_published=max_published,
            policy=Policy(**{"backoff": Backoff(5.0, 1.0, 60.0, 0.0), **policy}),
        )
        self.recorder = Recorder(
            entries=self.entries,
            dispatcher_of=lambda entry: self.dispatcher,
            writer=cast(StatusWriter, self.writer),
            tokens=TOKENS,
            clock=now,
            random=Random(0),
            on_recorded=lambda entry: self.recorded.append(entry.task.name),
            on_refused=lambda entry: self.refused.append(entry.task.name),
        )

    def open(self) -> None:
        self.dispatcher.open(cast(Publisher, self.publisher))

    def add(self, name: str, *, priority: int = 0, created: float = 0.0) -> Entry:
        """Hold a Task that waits."""
        task = Task(
            namespace="shop",
            name=name,
            uid=f"uid-{name}",
            generation=1,
            created=created,
            spec=TaskSpec(queue="q", handler="resize", priority=priority),
        )
        entry = Entry(task=task, status=TaskStatus(), written=TaskStatus())
        self.entries[task.uid] = entry
        self.dispatcher.submit(entry)
        return entry

    async def published(self, name: str = "t") -> Entry:
        """Hold a Task whose first attempt is confirmed by the broker."""
        entry = self.add(name)
        self.open()
        await turn()
        self.publisher.settle(Settled.CONFIRMED)
        return entry

    def event(
        self,
        entry: Entry,
        kind: EventKind,
        *,
        attempt: int = 1,
        epoch: int = 0,
        token: str | None = None,
        error: EventError | None = None,
        uid: str | None = None,
        result: Any = MISSING,
    ) -> int:
        """Have a worker's word come in; return its delivery tag."""
        uid = uid or entry.task.uid
        outcome = {"a": None} if kind is EventKind.SUCCEEDED else None
        if result is not MISSING:
            outcome = result
        event = AttemptEvent(
            kind=kind,
            namespace="shop",
            queue="q",
            task=entry.task.name,
            uid=uid,
            token=TOKENS.sign(uid, attempt, epoch) if token is None else token,
            attempt=attempt,
            epoch=epoch,
            worker="pod-1",
            seconds=0.1,
            result=outcome,
            error=error,
        )
        return self.message(encode(event))

    def failed(self, entry: Entry, *, attempt: int = 1) -> int:
        error = EventError(type="Boom", message="it broke")
        return self.event(entry, EventKind.FAILED, attempt=attempt, error=error)

    def message(
        self,
        body: bytes,
        *,
        exchange: str = OUTCOMES_EXCHANGE,
        properties: BasicProperties | None = None,
    ) -> int:
        tag = next(self._tags)
        delivery = Delivery(
            channel=cast(Channel, self.channel),
            delivery_tag=tag,
            redelivered=False,
            exchange=exchange,
            routing_key="shop.q.task.succeeded",
            properties=properties or BasicProperties(),
            body=body,
        )
        self.recorder.take(delivery, lambda given, why: self.given_up.append((given, why)))
        return tag

    def dead_letter(self, message: WorkMessage, **headers: Any) -> int:
        """Have the broker give a work message up."""
        properties = message.properties()
        properties.headers = {**(properties.headers or {}), **headers}
        return self.message(message.body, exchange=DEAD_EXCHANGE, properties=properties)

    def _on_missing(self) -> None:
        self.missing += 1


async def turn() -> None:
    """Let what is due now happen."""
    for _ in range(3):
        await asyncio.sleep(0)


async def until_time(seconds: float) -> None:
    """Let virtual time pass up to a little after this long since the start of the loop."""
    left = seconds - asyncio.get_running_loop().time()
    await asyncio.sleep(max(left, 0) + 0.001)
