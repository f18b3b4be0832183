"""Several events in one message: each counts as if it had come alone, whatever the others are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Settled
from taskqueue.contract.batch import join
from taskqueue.contract.outcome import AttemptEvent, EventKind, encode
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.limits import BATCH_BYTES
from tests.unit.controller.fakes import TOKENS, TaskHarness, turn

pytestmark = pytest.mark.looptime

BATCH = BasicProperties(content_type="application/cloudevents-batch+json")


def end_of(entry: TrackedTask, **changes: Any) -> bytes:
    uid = entry.task.uid
    event = AttemptEvent(
        kind=EventKind.SUCCEEDED,
        namespace="shop",
        queue="q",
        task=entry.task.name,
        uid=uid,
        token=TOKENS.sign(uid, 1, 0),
        attempt=1,
        epoch=0,
        worker="pod-1",
        seconds=0.2,
        result={"n": 1},
    )
    return encode(replace(event, **changes))


async def test_each_event_of_a_batch_counts_and_the_last_write_acknowledges_it() -> None:
    harness = TaskHarness()
    first, second = await harness.published("a"), await harness.published("b")
    tag = harness.message(join([end_of(first), end_of(second)]), properties=BATCH)
    await asyncio.sleep(5)
    writes = {write.uid: write for write in harness.writer.writes}
    assert {uid: write.status["phase"] for uid, write in writes.items()} == {
        "uid-a": "Succeeded",
        "uid-b": "Succeeded",
    }
    writes["uid-a"].succeed()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    await turn()
    assert harness.channel.acked == [], "before the second is on record"
    writes["uid-b"].succeed()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    await turn()
    assert harness.channel.acked == [tag]


async def test_a_batch_that_comes_again_after_a_part_was_recorded_is_acknowledged() -> None:
    harness = TaskHarness()
    first, second = await harness.published("a"), await harness.published("b")
    body = join([end_of(first), end_of(second)])
    harness.message(body, properties=BATCH)
    again = harness.message(body, properties=BATCH)
    await asyncio.sleep(5)
    for write in list(harness.writer.writes):
        write.succeed()
    for _ in range(4):
        await turn()
        harness.publisher.settle(Settled.CONFIRMED)
    assert len(harness.writer.writes) == 2
    assert again in harness.channel.acked


@pytest.mark.parametrize("bad", [b'{"a": NaN}', b"7", b'{"specversion": "1.0"}', b'"\xff"'])
async def test_a_bad_event_of_a_batch_is_parked_alone(bad: bytes) -> None:
    harness = TaskHarness()
    entry = await harness.published("a")
    tag = harness.message(join([bad, end_of(entry), bad]), properties=BATCH)
    await asyncio.sleep(5)
    assert [delivery.body for delivery, _ in harness.given_up] == [bad, bad]
    for delivery, reason in harness.given_up:
        assert reason
        assert delivery.properties.content_type == "application/cloudevents+json"
        for _ in range(2):
            delivery.channel.ack(delivery.delivery_tag)
    assert harness.channel.acked == [], "before the good one is on record"
    harness.writer.writes[0].succeed()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    await turn()
    assert harness.channel.acked == [tag]


async def test_an_event_of_a_batch_with_an_inexact_result_ends_its_attempt() -> None:
    harness = TaskHarness()
    entry = await harness.published("a")
    inexact = end_of(entry, result={}).replace(b'"result":{}', b'"result":{"a":NaN}')
    other = await harness.published("b")
    harness.message(join([inexact, end_of(other)]), properties=BATCH)
    await asyncio.sleep(5)
    reasons = {write.uid: write.status["phase"] for write in harness.writer.writes}
    assert reasons == {"uid-a": "Failed", "uid-b": "Succeeded"}
    assert not harness.given_up


#: In place of a valid token: what no encoder, or no parser of numbers, is glad about.
CLAIMS = [
    f'"{TOKENS.current}.\\ud800"'.encode(),
    b'"\\udfff.x"',
    f'"{TOKENS.current}.\\n"'.encode(),
    b'""',
    b"7",
    b"[]",
    b"1e300",
    b"NaN",
    b"null",
]


@pytest.mark.parametrize("claim", CLAIMS, ids=range(len(CLAIMS)))
@pytest.mark.parametrize("field", ["token", "attempt", "epoch"])
async def test_an_event_whose_claim_cannot_be_judged_is_parked_alone(
    field: str, claim: bytes
) -> None:
    harness = TaskHarness()
    entry = await harness.published("a")
    fields = {"token": f'"{TOKENS.sign(entry.task.uid, 1, 0)}"', "attempt": "1", "epoch": "0"}
    begin, end = f'"{field}":{fields[field]}'.encode(), b'"result":{"n":1}'
    odd = end_of(entry).replace(begin, f'"{field}":'.encode() + claim).replace(end, b'"result":NaN')
    assert claim in odd
    assert b"NaN" in odd
    harness.message(join([odd, end_of(entry)]), properties=BATCH)
    await asyncio.sleep(5)
    assert [delivery.body for delivery, _ in harness.given_up] == [odd]
    assert harness.writer.writes[0].status["phase"] == "Succeeded"


@pytest.mark.parametrize("body", [b"[{}", b"x", b"[]", b"[" * 300_000, b"[1]" + b" " * BATCH_BYTES])
async def test_what_is_no_batch_is_parked_as_a_whole(body: bytes) -> None:
    harness = TaskHarness()
    harness.message(body, properties=BATCH)
    ((delivery, reason),) = harness.given_up
    assert delivery.body == body
    assert "batch" in reason


async def test_an_event_on_which_the_intake_fails_is_parked_and_the_others_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = TaskHarness()
    entry = await harness.published("a")
    odd = end_of(entry, kind=EventKind.RELEASED)

    def fail(report: AttemptEvent) -> Any:
        raise ZeroDivisionError("odd")

    inbox = harness.tasks.inbox
    genuine = inbox._is_genuine
    monkeypatch.setattr(
        inbox,
        "_is_genuine",
        lambda report: fail(report) if report.kind is EventKind.RELEASED else genuine(report),
    )
    harness.message(join([odd, end_of(entry)]), properties=BATCH)
    await asyncio.sleep(5)
    ((delivery, reason),) = harness.given_up
    assert (delivery.body, reason) == (odd, "the operator failed on it: ZeroDivisionError('odd')")
    assert harness.writer.writes[0].status["phase"] == "Succeeded"


async def test_a_batch_whose_routing_key_cannot_be_read_ends_the_attempts_in_it() -> None:
    harness = TaskHarness(max_attempts=1)
    entries = [await harness.published(name) for name in ("a", "b")]
    body = join([end_of(entry) for entry in entries])
    harness.message(body, properties=BATCH, problem="its routing key is not UTF-8")
    await asyncio.sleep(5)
    messages = [write.status["message"] for write in harness.writer.writes]
    assert len(messages) == 2
    assert all("its routing key is not UTF-8" in message for message in messages)
    assert not harness.given_up
