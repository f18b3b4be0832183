"""Fakes of the broker's channel, its publisher and an executor, controlled by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.contract.outcome import AttemptEvent, decode
from taskqueue.contract.work import WorkMessage
from taskqueue.worker.broker_source import BrokerSource
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.sdk import Progress
from taskqueue.worker.settings import WorkerSettings

BROKER = BrokerSource({"TASKQUEUE_BROKER_URI": "amqp://u:p@rabbit"})


def settings(**changes: Any) -> WorkerSettings:
    values: dict[str, Any] = {
        "namespace": "shop",
        "queue": "q",
        "broker": BROKER,
        "pod": "pod-1",
        "slots": 2,
    }
    return WorkerSettings(**{**values, **changes})


def work(token: str = "k.1", **changes: Any) -> WorkMessage:  # noqa: S107
    values: dict[str, Any] = {
        "namespace": "shop",
        "queue": "q",
        "task": f"task-{token}",
        "uid": f"uid-{token}",
        "handler": "resize",
        "attempt": 1,
        "max_attempts": 3,
        "epoch": 0,
        "token": token,
        "max_deliveries": 3,
        "timeout_seconds": 30,
        "body": b'{"width": 10}',
    }
    return WorkMessage(**{**values, **changes})


class FakeChannel:
    """Records what is settled; hands out delivery tags."""

    def __init__(self) -> None:
        self.settled: list[tuple[Any, ...]] = []
        self._tag = 0

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        self.settled.append(("ack", delivery_tag, multiple))

    def nack(self, delivery_tag: int, *, requeue: bool) -> None:
        self.settled.append(("nack", delivery_tag, requeue))

    def reject(self, delivery_tag: int, *, requeue: bool) -> None:
        self.settled.append(("reject", delivery_tag, requeue))

    def deliver(
        self,
        message: WorkMessage | BasicProperties,
        body: bytes = b"{}",
        *,
        deliveries: int = 0,
        exchange: str = "taskqueue.work",
    ) -> Delivery:
        if isinstance(message, WorkMessage):
            properties, body = message.properties(), message.body
        else:
            properties = message
        if deliveries:
            properties.headers = {**(properties.headers or {}), "x-delivery-count": deliveries}
        self._tag += 1
        return Delivery(
            channel=cast(Channel, self),
            delivery_tag=self._tag,
            redelivered=deliveries > 0,
            exchange=exchange,
            routing_key="shop.q",
            properties=properties,
            body=body,
        )


@dataclass
class Published:
    exchange: str
    key: str
    body: bytes
    properties: BasicProperties
    on_settled: OnSettled

    @property
    def event(self) -> AttemptEvent:
        return decode(self.body)


class FakePublisher:
    """Keeps what is published until the test confirms or returns it."""

    def __init__(self) -> None:
        self.published: list[Published] = []

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        on_settled: OnSettled,
        *,
        mandatory: bool = True,
    ) -> None:
        self.published.append(Published(exchange, key, body, properties, on_settled))

    def settle(self, verdict: Settled = Settled.CONFIRMED, text: str = "") -> list[Published]:
        """Settle everything published so far and return it."""
        settled, self.published = self.published, []
        for each in settled:
            each.on_settled(verdict, text)
        return settled

    @property
    def real(self) -> Publisher:
        return cast(Publisher, self)


@dataclass
class FakeExecution:
    attempt: AttemptRequest
    done: Callable[[AttemptResult], None]
    cancelled: bool = False
    progress: Progress | None = None
    killable: bool = False
    killed: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def kill(self) -> bool:
        self.killed = self.killable
        return self.killable

    def succeed(self, seconds: float = 0.001, result: dict[str, Any] | None = None) -> None:
        self.done(AttemptResult(seconds=seconds, result=result))


@dataclass
class FakeExecutor:
    """Starts attempts and leaves their ends to the test."""

    started: list[FakeExecution] = field(default_factory=list)

    def start(
        self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]
    ) -> FakeExecution:
        execution = FakeExecution(attempt, done)
        self.started.append(execution)
        return execution

    async def close(self, seconds: float = 0.0) -> None: ...


def payload(delivery: Published) -> Any:
    return json.loads(delivery.body)


async def turn() -> None:
    """Let everything that is due on the loop happen."""
    for _ in range(3):
        await asyncio.sleep(0)
