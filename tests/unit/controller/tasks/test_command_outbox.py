"""Orders go out in order, and each is kept until the broker has it, but those to drain."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.contract.command import CommandKind, WorkerCommand, decode
from taskqueue.controller.tasks.command_outbox import CommandOutbox

pytestmark = pytest.mark.looptime


class FakePublisher:
    """Keeps orders; the test settles them."""

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
        order = decode(body)
        self.waiting.append((order.token or order.pod, on_settled))

    @property
    def tokens(self) -> list[str]:
        return [token for token, _ in self.waiting]

    def settle(self, verdict: Settled) -> None:
        waiting, self.waiting = self.waiting, []
        for _, on_settled in waiting:
            on_settled(verdict, "")


def order(token: str) -> WorkerCommand:
    return WorkerCommand(CommandKind.CANCEL, token=token, uid="uid")


def drain(pod: str) -> WorkerCommand:
    return WorkerCommand(CommandKind.DRAIN, pod=pod, namespace="shop")


def opened(line: CommandOutbox) -> FakePublisher:
    publisher = FakePublisher()
    line.open(cast(Publisher, publisher))
    return publisher


async def test_orders_wait_for_the_broker_and_keep_their_order() -> None:
    line = CommandOutbox()
    for token in "abc":
        line.send(order(token))
    assert len(line) == 3
    publisher = opened(line)
    line.send(order("d"))
    assert publisher.tokens == ["a", "b", "c", "d"]
    assert len(line) == 0
    publisher.settle(Settled.CONFIRMED)
    assert len(line) == 0


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_order_the_broker_does_not_have_goes_out_with_the_next_connection(
    verdict: Settled,
) -> None:
    line = CommandOutbox()
    first = opened(line)
    line.send(order("a"))
    first.settle(verdict)
    assert (first.tokens, len(line)) == ([], 1)  # not again and again to the same
    line.close()
    second = opened(line)
    assert second.tokens == ["a"]
    second.settle(Settled.CONFIRMED)
    assert len(line) == 0


async def test_an_order_whose_connection_ends_after_the_next_was_opened_goes_out_at_once() -> None:
    line = CommandOutbox()
    first = opened(line)
    line.send(order("a"))
    second = opened(line)
    first.settle(Settled.UNKNOWN)
    assert (second.tokens, len(line)) == (["a"], 0)


async def test_of_too_many_the_oldest_are_forgotten() -> None:
    line = CommandOutbox()
    for number in range(10_001):
        line.send(order(str(number)))
    assert len(line) == 10_000
    assert opened(line).tokens[0] == "1"


async def test_an_order_to_drain_is_not_kept_while_there_is_no_broker() -> None:
    line = CommandOutbox()
    line.send(drain("early"))
    line.send(order("a"))
    publisher = opened(line)
    line.send(drain("wanted"))
    assert publisher.tokens == ["a", "wanted"]


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_order_to_drain_that_the_broker_does_not_have_is_not_sent_again(
    verdict: Settled,
) -> None:
    line = CommandOutbox()
    first = opened(line)
    line.send(drain("pod"))
    first.settle(verdict)
    line.close()
    second = opened(line)
    assert second.tokens == []
    second_line = CommandOutbox()
    old = opened(second_line)
    second_line.send(drain("pod"))
    new = opened(second_line)
    old.settle(verdict)  # the next connection is there already
    assert (new.tokens, len(second_line)) == ([], 0)
