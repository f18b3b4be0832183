"""A webhook between a real RabbitMQ and a real receiver on this machine."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract import outbox
from taskqueue.contract.completion import task_completion
from taskqueue.contract.names import dead_queue
from taskqueue.contract.outbox import Outbox, webhook_outbox
from taskqueue.contract.topology import (
    declare_operator_topology,
    declare_task_queue,
    delete_task_queue,
    ready_messages,
    unbind_outboxes,
)
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.queues import webhook_sender
from taskqueue.controller.queues.webhook_sender import WebhookSender
from taskqueue.direct.dead_letters import DeadLetterKind, read_dead_letters, redrive
from taskqueue.kubernetes.client import ApiClient
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from taskqueue.model.webhook import SecretKey, WebhookConfig
from tests.integration.amqp.conftest import broker_endpoint, parameters, rabbitmq_vhost
from tests.integration.webhooks.receiver import WebhookReceiver

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

__all__ = ["broker_endpoint", "parameters", "rabbitmq_vhost"]

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
ALL = ("task.succeeded", "task.failed", "task.cancelled")
NOW = 1_767_225_600.0


class Case:
    """A TaskQueue at the broker with webhooks, and senders of some of them."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.connection, self.key = connection, (namespace, "q")
        self.senders: list[WebhookSender] = []
        self.now = NOW

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        return {"data": {"secret": base64.b64encode(SECRET.encode()).decode()}}

    async def declare(self, *sinks: Outbox) -> None:
        await declare_operator_topology(self.connection)
        await declare_task_queue(self.connection, *self.key, sinks=sinks)

    async def start(self, name: str, url: str) -> WebhookSender:
        sender = WebhookSender(
            name,
            self.key,
            client=cast(ApiClient, self),
            installation="default",
            networks=WebhookNetworks.parse("127.0.0.0/8"),
            clock=lambda: self.now,
        )
        self.senders.append(sender)
        config = WebhookConfig(name=name, url=url, signing_secret=SecretKey("s", "secret"))
        await sender.loop.reconcile(config, self.connection)
        return sender

    async def publish(self, *numbers: int, phase: Phase = Phase.SUCCEEDED) -> list[Settled]:
        publisher = await Publisher.open(self.connection)
        waiting = [publisher.publish_and_wait(*self._message(one, phase)) for one in numbers]
        try:
            return [verdict for verdict, _ in await asyncio.gather(*waiting)]
        finally:
            await publisher.close()

    def _message(self, number: int, phase: Phase) -> tuple[str, str, bytes, Any]:
        task = Task(
            namespace=self.key[0],
            name=f"t-{number}",
            uid=f"{number}",
            generation=1,
            created=1.0,
            spec=TaskSpec(queue="q", handler="resize"),
        )
        status = TaskState(phase=phase, attempts=1, completion_time=NOW)
        message = task_completion(task, status).message()
        return message.exchange, message.key, message.body, message.properties()

    async def ready(self, queue: str) -> int | None:
        return await ready_messages(await self.connection.channel(), queue)

    async def dead_letter_is_there(self) -> None:
        while not await self.ready(dead_queue(*self.key)):  # noqa: ASYNC110  (a broker's)
            await asyncio.sleep(0.1)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110  (a thread's)
            await asyncio.sleep(0.05)


@pytest.fixture
async def case(parameters: BrokerParameters) -> AsyncIterator[Case]:
    connection = await connect(parameters, name="webhooks")
    case = Case(connection, parameters.virtual_host)
    yield case
    for sender in case.senders:
        await sender.loop.close()
    await connection.close()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ends that were not accepted come back after one second."""
    monkeypatch.setattr(outbox, "RETRY_SECONDS", (1,))
    monkeypatch.setattr(outbox, "_FAILURES", ())
    monkeypatch.setattr(webhook_sender, "_LONGEST_PAUSE", 2.0)


@pytest.mark.usefixtures("quick_retries")
async def test_all_ends_arrive_at_a_receiver_that_fails_and_is_away_and_none_waits_for_another(
    case: Case,
) -> None:
    receiver, good = WebhookReceiver(SECRET), WebhookReceiver(SECRET)
    receiver.failing = 0.3
    await case.declare(webhook_outbox("bad", ALL), webhook_outbox("good", ALL))
    await case.start("bad", receiver.url)
    await case.start("good", good.url)
    verdicts = await case.publish(*range(200))
    await case.until(lambda: len(receiver.accepted) >= 20)
    receiver.stop()
    verdicts += await case.publish(*range(200, 400))
    await case.until(lambda: len(good.accepted) == 400)
    assert len(receiver.accepted) < 400
    receiver.start()
    await case.until(lambda: len(receiver.accepted) == 400)
    assert set(verdicts) == {Settled.CONFIRMED}
    assert receiver.accepted.keys() == {f"{number}.1" for number in range(400)}
    assert receiver.forged == good.forged == 0
    assert all(len(bodies) == 1 for bodies in receiver.bodies.values())
    assert receiver.refused > 40
    receiver.stop()
    good.stop()


@pytest.mark.usefixtures("quick_retries")
async def test_what_is_refused_for_a_day_is_listed_among_the_dead_letters_and_stays_there(
    case: Case,
) -> None:
    receiver = WebhookReceiver(SECRET)
    receiver.failing = 1.0
    await case.declare(webhook_outbox("hook", ALL))
    await case.start("hook", receiver.url)
    await case.publish(1)
    await case.until(lambda: receiver.refused >= 2)
    case.now += 90_000
    await case.dead_letter_is_there()
    page = await read_dead_letters(case.connection, *case.key)
    (letter,) = page.messages
    assert letter.kind is DeadLetterKind.WEBHOOK
    assert letter.reason.startswith("webhook hook: not accepted for a day: it does not accept")
    await case.dead_letter_is_there()  # again: it was held to be read
    result = await redrive(case.connection, *case.key)
    assert (result.redriven, result.kept_outcomes) == (0, 1)
    receiver.stop()


async def test_a_webhook_gets_the_ends_it_asks_for_until_it_is_removed(case: Case) -> None:
    failed = webhook_outbox("hook", ["task.failed"])
    await case.declare(failed)
    await case.publish(1, phase=Phase.SUCCEEDED)
    assert await case.publish(2, phase=Phase.FAILED) == [Settled.CONFIRMED]
    name = failed.name(*case.key, "default")
    assert await case.ready(name) == 1
    every = webhook_outbox("hook", ALL)
    await unbind_outboxes(case.connection, [failed], *case.key, "default", needed=[every])
    await case.declare(every)
    await case.publish(3, 4)
    assert await case.ready(name) == 3
    await unbind_outboxes(case.connection, [every], *case.key, "default")
    assert await case.publish(5) == [Settled.RETURNED]  # as mandatory: nobody is bound
    await delete_task_queue(case.connection, *case.key, "default", sinks=[every])
    for queue, _ in every.queues(*case.key, "default"):
        assert await case.ready(queue) is None


async def test_queues_are_deleted_by_the_broker_when_nobody_declares_them(case: Case) -> None:
    """Those of a webhook that was removed while no operator ran; a declaration keeps them."""
    left = replace(webhook_outbox("left", ALL), expiry_seconds=4)
    kept = replace(webhook_outbox("kept", ALL), expiry_seconds=4)
    await case.declare(left, kept)
    queues = [name for name, _ in left.queues(*case.key, "default")]
    for _ in range(20):
        await asyncio.sleep(1)
        await case.declare(kept)
    # That they are counted keeps queues, too: each of these is asked about once.
    assert [await case.ready(name) for name in queues] == [None] * len(queues)
    assert await case.publish(1) == [Settled.CONFIRMED]
    assert await case.ready(kept.name(*case.key, "default")) == 1
