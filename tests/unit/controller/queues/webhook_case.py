"""A sender of webhooks between stand-ins for its broker, its receiver and its API server."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.completion import task_completion
from taskqueue.contract.names import dead_queue
from taskqueue.controller.completions.webhook_client import WebhookFailure, WebhookTrouble
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.queues import webhook_sender
from taskqueue.controller.queues.conditions.sink_state import SinkState
from taskqueue.controller.queues.webhook_sender import WebhookSender
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from taskqueue.model.webhook import SecretKey, WebhookConfig

KEY = ("shop", "q")
CONFIG = WebhookConfig(
    name="hook", url="https://there.example/hook", signing_secret=SecretKey("signing", "secret")
)
SIGNING = "whsec_" + base64.b64encode(b"s" * 32).decode()
#: When the tests begin.
NOW = 1_767_225_600.0

Message = tuple[bytes, Mapping[str, Any]]


def end(name: str = "t", *, phase: Phase = Phase.FAILED, at: float = NOW, **spec: Any) -> bytes:
    task = Task(
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        generation=1,
        created=1.0,
        spec=TaskSpec(queue="q", handler="resize", **spec),
    )
    status = TaskState(phase=phase, attempts=1, completion_time=at)
    return task_completion(task, status).encode()


class FakeBroker:
    """An outbox, queues that give back what is put there after some time, and a dead queue.

    It stands in for its own connections, channels and publishers.
    """

    def __init__(self) -> None:
        self.ready: list[Message] = []
        self.unacknowledged: dict[int, Message] = {}
        self.dead: list[Message] = []
        self.most = 0
        #: Queues that take nothing.
        self.refuses = re.compile("(?!)")
        self.moves: list[str] = []
        self._consumer: tuple[FakeChannel, Callable[[Delivery], None]] | None = None
        self._tag = 0

    async def channel(self) -> FakeChannel:
        return FakeChannel(self)

    def put(self, *bodies: bytes) -> None:
        self.ready += [(body, {}) for body in bodies]
        self.deliver()

    @property
    def waiting(self) -> int:
        return len(self.ready) + len(self.unacknowledged)

    async def publish_and_wait(
        self, exchange: str, queue: str, body: bytes, properties: BasicProperties
    ) -> tuple[Settled, str]:
        assert exchange == ""
        assert properties.delivery_mode == 2
        if self.refuses.search(queue):
            return Settled.UNKNOWN, "refused"
        self.moves.append(queue)
        message = (body, properties.headers or {})
        if queue == dead_queue(*KEY):
            self.dead.append(message)
        else:
            found = re.fullmatch(r"taskqueue-operator\.webhook-hook\.retry-(\d+)\.shop\.q", queue)
            assert found
            asyncio.get_running_loop().call_later(int(found[1]), self._give_back, message)
        return Settled.CONFIRMED, ""

    async def close(self) -> None: ...

    def _give_back(self, message: Message) -> None:
        self.ready.append(message)
        self.deliver()

    def consume(self, channel: FakeChannel, on_delivery: Callable[[Delivery], None]) -> None:
        self._consumer = channel, on_delivery
        self.deliver()

    def deliver(self) -> None:
        while self._consumer and self.ready:
            channel, on_delivery = self._consumer
            if len(self.unacknowledged) >= channel.prefetch:
                return
            self._tag += 1
            self.unacknowledged[self._tag] = body, headers = self.ready.pop(0)
            self.most = max(self.most, len(self.unacknowledged))
            properties = BasicProperties(headers=dict(headers))
            on_delivery(
                Delivery(cast(Channel, channel), self._tag, False, "e", "k", properties, body)
            )

    def on_acknowledged(self, channel: FakeChannel, tag: int) -> None:
        if self._consumer and self._consumer[0] is channel:
            del self.unacknowledged[tag]
            self.deliver()

    def on_closed(self, channel: FakeChannel) -> None:
        if self._consumer and self._consumer[0] is channel:
            self._consumer = None
            self.ready[:0] = self.unacknowledged.values()
            self.unacknowledged.clear()


class FakeChannel:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.prefetch = 0

    async def set_prefetch(self, count: int) -> None:
        self.prefetch = count

    async def consume(
        self, queue: str, on_delivery: Callable[[Delivery], None], on_cancel: object
    ) -> None:
        assert queue == "taskqueue-operator.webhook-hook.shop.q"
        self._broker.consume(self, on_delivery)

    def ack(self, tag: int) -> None:
        self._broker.on_acknowledged(self, tag)

    async def close(self) -> None:
        self._broker.on_closed(self)
        if not self.closed.done():
            self.closed.set_result((0, "closed"))


class FakeReceiver:
    """Answers as ``judge`` says, after ``seconds``."""

    def __init__(self) -> None:
        self.judge: Callable[[bytes], WebhookFailure | None] = lambda body: None
        self.seconds = 0.0
        self.at_once = self.most_at_once = 0
        #: Time, URL, headers and body of each request.
        self.requests: list[tuple[float, str, Mapping[str, str], bytes]] = []
        self.accepted: list[bytes] = []
        self.clients = 0

    def open(self, networks: WebhookNetworks, *, at_once: int) -> FakeReceiver:
        assert networks == WebhookNetworks()
        self.clients += 1
        return self

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float
    ) -> WebhookFailure | None:
        self.requests.append((asyncio.get_running_loop().time(), url, headers, body))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        failure = self.judge(body)
        if failure is None:
            self.accepted.append(body)
        return failure

    async def close(self) -> None: ...


class FakeApi:
    """Has Secrets, or raises."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, str]] = {"signing": {"secret": SIGNING}}

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        name = path.removeprefix("/api/v1/namespaces/shop/secrets/")
        if name not in self.secrets:
            raise ApiError(404, "NotFound", "x")
        values = self.secrets[name].items()
        return {"data": {key: base64.b64encode(one.encode()).decode() for key, one in values}}


REFUSED = WebhookFailure(WebhookTrouble.REFUSED, 500)


class Case:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker, self.receiver, self.api = FakeBroker(), FakeReceiver(), FakeApi()
        self.changes = 0
        self._began = 0.0
        self.sender = WebhookSender(
            "hook",
            KEY,
            client=cast(ApiClient, self.api),
            installation="default",
            networks=WebhookNetworks(),
            clock=self.now,
        )
        self.sender.loop.on_change = self._on_change

        async def open_publisher(connection: object) -> FakeBroker:
            return self.broker

        monkeypatch.setattr(webhook_sender, "WebhookClient", self.receiver.open)
        monkeypatch.setattr(Publisher, "open", open_publisher)

    def now(self) -> float:
        return NOW + asyncio.get_running_loop().time() - self._began

    def _on_change(self) -> None:
        self.changes += 1

    async def start(self, config: WebhookConfig = CONFIG) -> None:
        self._began = asyncio.get_running_loop().time()  # that of a fixture is another
        await self.sender.loop.reconcile(config, cast(Connection, self.broker))

    @property
    def state(self) -> SinkState:
        assert self.sender.loop.state is not None
        return self.sender.loop.state
