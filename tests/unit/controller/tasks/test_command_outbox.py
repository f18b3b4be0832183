"""Commands are sent in order and kept until confirmed, except those to drain."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.contract.command import WorkerCommand, decode
from taskqueue.controller.tasks.command_outbox import CommandOutbox
from taskqueue.model.command import CommandKind

pytestmark = pytest.mark.looptime


class FakePublisher:
    """Records commands; the test settles them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, OnSettled]] = []
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

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
        assert (exchange, key, mandatory) == ("", "taskqueue.control", True)
        command = decode(body)
        self.waiting.append((command.token or command.pod, on_settled))

    @property
    def tokens(self) -> list[str]:
        return [token for token, _ in self.waiting]

    def settle(self, verdict: Settled) -> None:
        waiting, self.waiting = self.waiting, []
        for _, on_settled in waiting:
            on_settled(verdict, "")


def cancel(token: str) -> WorkerCommand:
    return WorkerCommand(CommandKind.CANCEL, token=token, uid="uid")


def drain(pod: str) -> WorkerCommand:
    return WorkerCommand(CommandKind.DRAIN, pod=pod, namespace="shop")


def opened(outbox: CommandOutbox) -> FakePublisher:
    publisher = FakePublisher()
    outbox.open(cast(Publisher, publisher))
    return publisher


async def test_commands_wait_for_the_broker_and_keep_their_order() -> None:
    outbox = CommandOutbox()
    for token in "abc":
        outbox.send(cancel(token))
    assert len(outbox) == 3
    publisher = opened(outbox)
    outbox.send(cancel("d"))
    assert publisher.tokens == ["a", "b", "c", "d"]
    assert len(outbox) == 0
    publisher.settle(Settled.CONFIRMED)
    assert len(outbox) == 0


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_unconfirmed_command_is_sent_with_the_next_connection(
    verdict: Settled,
) -> None:
    outbox = CommandOutbox()
    first = opened(outbox)
    outbox.send(cancel("a"))
    first.settle(verdict)
    assert (first.tokens, len(outbox)) == ([], 1)  # not again and again to the same
    outbox.close()
    second = opened(outbox)
    assert second.tokens == ["a"]
    second.settle(Settled.CONFIRMED)
    assert len(outbox) == 0


async def test_an_unconfirmed_command_is_sent_at_once_if_the_next_connection_is_open() -> None:
    outbox = CommandOutbox()
    first = opened(outbox)
    outbox.send(cancel("a"))
    second = opened(outbox)
    first.settle(Settled.UNKNOWN)
    assert (second.tokens, len(outbox)) == (["a"], 0)


async def test_the_oldest_commands_are_dropped_above_the_limit() -> None:
    outbox = CommandOutbox()
    for number in range(10_001):
        outbox.send(cancel(str(number)))
    assert len(outbox) == 10_000
    assert opened(outbox).tokens[0] == "1"


async def test_a_drain_command_is_not_kept_while_there_is_no_broker() -> None:
    outbox = CommandOutbox()
    outbox.send(drain("early"))
    outbox.send(cancel("a"))
    publisher = opened(outbox)
    outbox.send(drain("wanted"))
    assert publisher.tokens == ["a", "wanted"]


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_unconfirmed_drain_command_is_not_sent_again(
    verdict: Settled,
) -> None:
    outbox = CommandOutbox()
    first = opened(outbox)
    outbox.send(drain("pod"))
    first.settle(verdict)
    outbox.close()
    second = opened(outbox)
    assert second.tokens == []
    second_outbox = CommandOutbox()
    old = opened(second_outbox)
    second_outbox.send(drain("pod"))
    new = opened(second_outbox)
    old.settle(verdict)  # the next connection is there already
    assert (new.tokens, len(second_outbox)) == ([], 0)
