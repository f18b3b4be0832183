"""Checkpoints: from the handler to the broker, and back to the handler's next start."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue import Context
from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.limits import CHECKPOINT_BYTES
from taskqueue.model.command import CommandKind
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.outcome import raised
from taskqueue.worker.sdk import CheckpointNeeded, HandlerRegistry, Snooze
from taskqueue.worker.sdk.checkpoints import decode_checkpoint, encode_checkpoint
from tests.unit.worker.children import PATIENCE, attempt, children
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import RuntimeHarness

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=9)
    | st.just(0.5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["value", "a", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_what_is_read_is_what_was_saved(value: Any) -> None:
    encoded = encode_checkpoint(value)
    assert decode_checkpoint(encoded) == value
    assert isinstance(json.loads(encoded), dict)


@dataclass
class Step:
    number: int


def test_a_dataclass_is_saved_as_an_object() -> None:
    assert decode_checkpoint(encode_checkpoint(Step(3))) == {"number": 3}


@pytest.mark.parametrize("value", [{1, 2}, object(), {1: "a"}, b"x"])
def test_what_json_cannot_say_is_refused_where_it_is_saved(value: Any) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\(value\): "):
        encode_checkpoint(value)


def test_what_is_too_large_is_refused_where_it_is_saved() -> None:
    encode_checkpoint("x" * (CHECKPOINT_BYTES - len('{"value":""}')))
    with pytest.raises(ValueError, match=f"the limit is {CHECKPOINT_BYTES}"):
        encode_checkpoint("x" * (CHECKPOINT_BYTES - len('{"value":""}') + 1))


# Executors.


def steps(payload: dict[str, Any], ctx: Context) -> Any:
    before = ctx.last_checkpoint
    for step in range(payload["steps"]):
        ctx.checkpoint({"step": step})
    return {"before": before, "after": ctx.last_checkpoint}


async def async_steps(payload: dict[str, Any], ctx: Context) -> Any:
    return steps(payload, ctx)


def asked(kind: str, saved: list[bytes], **changes: Any) -> AttemptRequest:
    return replace(attempt(kind, {"steps": 3}), on_checkpoint=saved.append, **changes)


async def run(kind: str, request: AttemptRequest) -> AttemptResult:
    if kind == "child":
        async with children(steps) as nursery:
            return await nursery.run(
                request.payload,
                checkpoint=request.checkpoint,
                checkpoint_known=request.checkpoint_known,
                on_checkpoint=request.on_checkpoint,
            )
    registry = HandlerRegistry()
    registry.register(steps, name="thread", thread=True)
    registry.register(async_steps, name="async")
    executor = FunctionExecutor(registry, asyncio.get_running_loop())
    ended = asyncio.get_running_loop().create_future()
    executor.start(request, ended.set_result)
    try:
        return await asyncio.wait_for(ended, PATIENCE)
    finally:
        await executor.close()


@pytest.mark.parametrize("kind", ["thread", "async", "child"])
async def test_every_executor_passes_checkpoints_on_in_order_before_the_end(kind: str) -> None:
    saved: list[bytes] = []
    result = await run(kind, asked(kind, saved, checkpoint=b'{"step":7}'))
    assert result.result == {"before": {"step": 7}, "after": {"step": 2}}
    assert [json.loads(one) for one in saved] == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("kind", ["thread", "async", "child"])
async def test_a_handler_that_asks_for_what_its_message_cannot_say_is_given_back(kind: str) -> None:
    saved: list[bytes] = []
    result = await run(kind, asked(kind, saved, checkpoint_known=False))
    assert (result.released, result.error, saved) == (True, None, [])


def test_needing_a_checkpoint_is_no_failure() -> None:
    result = raised(CheckpointNeeded(), 0.1)
    assert (result.released, result.error) == (True, None)


# The runtime.


@pytest.mark.looptime
async def test_the_latest_checkpoint_waits_for_the_one_before_and_comes_before_the_end() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", attempt=2, epoch=5, timeout_seconds=600))
    (execution,) = harness.executor.started
    save = execution.attempt.on_checkpoint
    assert save is not None
    for step in range(4):
        save(b'{"step":%d}' % step)
    (first,) = harness.publisher.settle()
    assert first.key == "shop.q.task.checkpoint"
    event = first.event
    assert (event.kind, event.token, event.attempt, event.epoch) == (
        EventKind.CHECKPOINT,
        "k.1",
        2,
        5,
    )
    assert event.checkpoint == {"step": 0}
    (latest,) = harness.publisher.settle(Settled.UNKNOWN, "lost")
    assert latest.event.checkpoint == {"step": 3}
    await asyncio.sleep(30)
    save(b'{"step":4}')
    execution.succeed()
    published = [
        one for one in harness.publisher.settle() if one.event.kind is not EventKind.STARTED
    ]
    assert [one.event.kind for one in published] == [
        EventKind.CHECKPOINT,
        EventKind.CHECKPOINT,
        EventKind.SUCCEEDED,
    ]
    assert [one.event.checkpoint for one in published[:2]] == [{"step": 3}, {"step": 4}]
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


@pytest.mark.looptime
@pytest.mark.parametrize("how", ["grace ended", "cancelled", "released", "timed out"])
async def test_what_is_saved_after_the_end_was_decided_is_not_published(how: str) -> None:
    harness = RuntimeHarness()
    message = work("k.1", timeout_seconds=5)
    harness.deliver(message)
    save = harness.executor.started[0].attempt.on_checkpoint
    assert save is not None
    save(b'{"step":1}')
    match how:
        case "grace ended":
            harness.runtime.begin_drain()
            harness.runtime.release_running()
        case "cancelled":
            harness.command(CommandKind.CANCEL)
        case "released":
            harness.command(CommandKind.RELEASE)
        case "timed out":
            await asyncio.sleep(6)
    save(b'{"step":2}')
    await asyncio.sleep(1)
    published = [one.event for one in harness.publisher.settle()]
    assert [one.checkpoint for one in published if one.kind is EventKind.CHECKPOINT] == [
        {"step": 1}
    ]
    assert harness.publisher.published == []


@pytest.mark.looptime
async def test_a_keyed_run_saves_checkpoints_until_its_end_is_published() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", fence=7))
    (execution,) = harness.executor.started
    save = execution.attempt.on_checkpoint
    assert save is not None
    harness.command(CommandKind.CANCEL)
    save(b'{"step":1}')
    assert [one.event.checkpoint for one in harness.publisher.settle()] == [{"step": 1}]
    execution.succeed()
    save(b'{"step":2}')
    kinds = [one.event.kind for one in harness.publisher.settle()]
    assert kinds == [EventKind.CANCELLED]


@pytest.mark.looptime
async def test_a_redelivered_attempt_with_a_checkpoint_is_given_back_with_its_deliveries() -> None:
    harness = RuntimeHarness()
    message = work("k.1", checkpoint=b'{"step":1}', checkpointed=True)
    harness.deliver(message, deliveries=2)
    assert not harness.executor.started
    (published,) = harness.publisher.settle()
    assert (published.event.kind, published.event.deliveries) == (EventKind.RELEASED, 2)
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]
    harness.deliver(message)
    assert harness.executor.started[0].attempt.checkpoint == b'{"step":1}'


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("checkpointed", "deliveries", "known"),
    [(False, 0, True), (False, 1, False), (None, 1, True)],
    ids=["first delivery", "redelivered with a key", "of an older operator"],
)
async def test_a_message_says_whether_the_last_checkpoint_is_known(
    checkpointed: bool | None, deliveries: int, known: bool
) -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", checkpointed=checkpointed, fence=7), deliveries=deliveries)
    (execution,) = harness.executor.started
    assert execution.attempt.checkpoint_known == known
    assert (execution.attempt.on_checkpoint is None) == (checkpointed is None)


@pytest.mark.looptime
async def test_a_message_with_a_broken_checkpoint_is_dead_lettered() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", checkpoint=b"[1]", checkpointed=True))
    assert not harness.executor.started
    (message,) = harness.publisher.settle()
    assert "tq-checkpoint" in message.properties.headers["tq-error"]


@pytest.mark.looptime
async def test_a_snooze_is_a_failure_with_a_wait_where_the_operator_knows_none() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", checkpointed=None))
    harness.executor.started[0].done(raised(Snooze(90), 0.1))
    (published,) = harness.publisher.settle()
    assert (published.event.kind, published.event.retry_after_seconds) == (EventKind.FAILED, 90)
    assert not math.isnan(published.event.seconds or 0.0)
