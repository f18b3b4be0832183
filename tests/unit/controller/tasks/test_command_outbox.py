"""Commands are sent in order and kept until confirmed, except those to drain."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from pika.spec import BasicProperties
from prometheus_client import REGISTRY

from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.contract.command import WorkerCommand, decode, encode
from taskqueue.controller.tasks import command_outbox
from taskqueue.controller.tasks.command_outbox import CommandOutbox
from taskqueue.controller.tasks.dispatcher import do_nothing
from taskqueue.model.command import CommandKind
from tests.unit.controller.fakes import KEY

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


def outbox_of_a_queue() -> CommandOutbox:
    return CommandOutbox(KEY, on_owed=do_nothing)


def opened(outbox: CommandOutbox) -> FakePublisher:
    publisher = FakePublisher()
    outbox.open(cast(Publisher, publisher))
    return publisher


async def test_commands_wait_for_the_broker_and_keep_their_order() -> None:
    outbox = outbox_of_a_queue()
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
async def test_an_unconfirmed_command_is_sent_again_after_a_pause(verdict: Settled) -> None:
    outbox = outbox_of_a_queue()
    publisher = opened(outbox)
    outbox.send(cancel("a"))
    outbox.send(cancel("b"))
    for _ in range(3):
        publisher.settle(verdict)
        await asyncio.sleep(4)
        assert (publisher.tokens, len(outbox)) == ([], 2)  # not again and again at once
        await asyncio.sleep(2)
        assert (publisher.tokens, len(outbox)) == (["a", "b"], 0)
    publisher.settle(Settled.CONFIRMED)
    await asyncio.sleep(60)
    assert (publisher.tokens, len(outbox)) == ([], 0)


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_unconfirmed_command_is_sent_with_the_next_connection(
    verdict: Settled,
) -> None:
    outbox = outbox_of_a_queue()
    first = opened(outbox)
    outbox.send(cancel("a"))
    first.settle(verdict)
    outbox.close()
    await asyncio.sleep(60)
    assert (first.tokens, len(outbox)) == ([], 1)
    second = opened(outbox)
    assert second.tokens == ["a"]
    second.settle(Settled.CONFIRMED)
    assert len(outbox) == 0


async def test_an_unconfirmed_command_is_sent_at_once_if_the_next_connection_is_open() -> None:
    outbox = outbox_of_a_queue()
    first = opened(outbox)
    outbox.send(cancel("a"))
    second = opened(outbox)
    first.settle(Settled.UNKNOWN)
    assert (second.tokens, len(outbox)) == (["a"], 0)


async def test_the_oldest_commands_are_dropped_above_the_limit_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = len(encode(cancel("0000")))
    monkeypatch.setattr(command_outbox, "KEPT_BYTES", 100 * size + size // 2)
    before = REGISTRY.get_sample_value("taskqueue_commands_dropped_total") or 0.0
    outbox = outbox_of_a_queue()
    for number in range(130):
        outbox.send(cancel(f"{number:04}"))
    assert (len(outbox), len(outbox.owed)) == (100, 100)
    assert opened(outbox).tokens == [f"{number:04}" for number in range(30, 130)]
    assert REGISTRY.get_sample_value("taskqueue_commands_dropped_total") == before + 30
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == ("command.dropped", "ERROR")


async def test_command_is_owed_from_when_it_waits_until_it_is_confirmed() -> None:
    changes: list[int] = []
    outbox = CommandOutbox(KEY, on_owed=lambda: changes.append(len(outbox.owed)))
    first = opened(outbox)
    outbox.send(cancel("a"))
    first.settle(Settled.CONFIRMED)
    assert changes == []  # in the usual case there is nothing to record
    outbox.send(cancel("b"))
    first.settle(Settled.UNKNOWN)
    outbox.close()
    outbox.send(cancel("c"))
    outbox.send(cancel("c"))
    outbox.send(drain("pod"))
    assert [one.token for one in outbox.owed] == ["b", "c"]
    second = opened(outbox)
    assert len(outbox.owed) == 2
    second.settle(Settled.CONFIRMED)
    assert not outbox.owed
    assert changes == [1, 2, 1, 0]


async def test_a_drain_command_is_not_kept_while_there_is_no_broker() -> None:
    outbox = outbox_of_a_queue()
    outbox.send(drain("early"))
    outbox.send(cancel("a"))
    publisher = opened(outbox)
    outbox.send(drain("wanted"))
    assert publisher.tokens == ["a", "wanted"]


@pytest.mark.parametrize("verdict", [Settled.UNKNOWN, Settled.RETURNED])
async def test_an_unconfirmed_drain_command_is_not_sent_again(
    verdict: Settled,
) -> None:
    outbox = outbox_of_a_queue()
    first = opened(outbox)
    outbox.send(drain("pod"))
    first.settle(verdict)
    outbox.close()
    second = opened(outbox)
    assert second.tokens == []
    second_outbox = outbox_of_a_queue()
    old = opened(second_outbox)
    second_outbox.send(drain("pod"))
    new = opened(second_outbox)
    old.settle(verdict)  # the next connection is there already
    assert (new.tokens, len(second_outbox)) == ([], 0)
