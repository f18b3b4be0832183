"""Concurrency keys: claimed on record, held to the limit, and given back when nothing can run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.flow import ConcurrencyPolicy
from taskqueue.model.queue import StopPolicy
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TaskHarness, turn

pytestmark = pytest.mark.looptime


async def keyed(harness: TaskHarness, name: str = "t", **spec: Any) -> TrackedTask:
    """Hold a Task with key k, in line for it."""
    entry = harness.add(name, concurrencyKey="k", **spec)
    harness.open()
    await turn()
    return entry


async def claimed(
    harness: TaskHarness, name: str = "t", *, version: int = 101, **spec: Any
) -> TrackedTask:
    """Hold a Task that has key k and is published."""
    entry = await keyed(harness, name, **spec)
    harness.writer.writes.pop().succeed(version=version)
    await turn()
    assert harness.publisher.names[-1] == name
    return entry


async def test_a_keyed_task_is_published_once_its_claim_is_on_record() -> None:
    harness = TaskHarness()
    entry = await keyed(harness)
    (write,) = harness.writer.writes
    assert (write.status["concurrencyKey"], write.urgent) == ("k", True)
    await asyncio.sleep(60)
    assert (entry.stage, harness.publisher.published) == (TaskStage.CLAIMING, [])
    assert (harness.dispatcher.waiting, harness.dispatcher.published) == (1, 0)
    write.succeed(version=4711)
    assert harness.publisher.published[0].message.fence == 4711
    assert entry.stage is TaskStage.PUBLISHED


async def test_a_task_without_a_key_has_no_fence_and_waits_for_no_write() -> None:
    harness = TaskHarness()
    await harness.published()
    assert not harness.writer.writes


async def test_a_process_that_lost_the_lease_publishes_no_keyed_task() -> None:
    harness = TaskHarness()
    await keyed(harness)
    harness.leads = False
    harness.writer.writes[0].succeed()
    await asyncio.sleep(10)
    assert not harness.publisher.published
    harness.leads = True  # its renewal was only slow
    await asyncio.sleep(1)
    assert harness.publisher.names == ["t"]


async def test_a_claim_on_record_is_not_published_while_the_queue_holds() -> None:
    harness = TaskHarness()
    await keyed(harness)
    harness.dispatcher.config = replace(harness.config, stop_policy=StopPolicy.HOLD)
    harness.writer.writes[0].succeed()
    await asyncio.sleep(10)
    assert not harness.publisher.published
    harness.dispatcher.config = harness.config
    await turn()
    assert harness.publisher.names == ["t"]


async def test_a_claim_on_record_waits_for_the_broker() -> None:
    harness = TaskHarness()
    await keyed(harness)
    harness.dispatcher.close()
    harness.writer.writes[0].succeed(version=7)
    await asyncio.sleep(10)
    assert not harness.publisher.published
    harness.open()
    await turn()
    assert harness.publisher.published[0].message.fence == 7


async def test_an_unneeded_claim_is_released() -> None:
    harness = TaskHarness()
    entry = await keyed(harness)
    claim = harness.writer.writes.pop()
    harness.add("t", concurrencyKey="k", suspend=True)
    other = harness.add("other", concurrencyKey="k")
    await turn()
    assert other.stage is TaskStage.CLAIMING
    claim.succeed()
    assert entry.stage is TaskStage.HELD
    harness.add("t", concurrencyKey="k", suspend=False)
    await turn()
    assert not harness.publisher.published
    assert entry.status.reason == "ConcurrencyLimit"


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_no_more_than_the_limit_have_a_key(limit: int) -> None:
    harness = TaskHarness(per_key=limit)
    for number in range(6):
        await keyed(harness, f"t{number}")
    assert len(harness.writer.writes) == limit
    for write in harness.writer.writes:
        write.succeed()
    await asyncio.sleep(3)
    assert harness.publisher.names == [f"t{number}" for number in range(limit)]
    parked = harness.entries["uid-t5"]
    assert (parked.stage, parked.status.phase) == (TaskStage.WAITING, Phase.BLOCKED)
    assert parked.status.reason == "ConcurrencyLimit"
    assert "Tasks of key k" in parked.status.message


async def test_another_key_and_no_key_go_on() -> None:
    harness = TaskHarness()
    await claimed(harness, "first")
    await keyed(harness, "second")
    harness.add("other", concurrencyKey="l")
    harness.add("plain")
    await turn()
    harness.writer.writes.pop().succeed()
    assert harness.publisher.names == ["first", "plain", "other"]


@pytest.mark.parametrize("how", ["success", "failure", "deletion", "limit", "unknown handler"])
async def test_whoever_is_next_claims_a_key_that_is_free(how: str) -> None:
    harness = TaskHarness()
    first = await claimed(harness, "first")
    late = await keyed(harness, "late")
    next_one = await keyed(harness, "next", priority=5)
    match how:
        case "success":
            harness.event(first, EventKind.SUCCEEDED)
        case "failure":
            harness.failed(first)
        case "deletion":
            await harness.delete(first)
            harness.event(first, EventKind.CANCELLED)
        case "limit":
            harness.dispatcher.config = replace(harness.config, keys=ConcurrencyPolicy(per_key=2))
        case _:
            error = EventError(type="UnknownHandler", message="none", reserved=True)
            harness.event(first, EventKind.FAILED, error=error)
    await turn()
    assert next_one.stage is TaskStage.CLAIMING
    assert late.status.reason == "ConcurrencyLimit"
    assert harness.writer.writes[-1].status["phase"] == "Pending"  # no longer Blocked


@pytest.mark.parametrize(
    ("verdict", "copies"), [(Settled.UNKNOWN, 0), (Settled.RETURNED, 1), (Settled.CONFIRMED, 0)]
)
async def test_no_second_copy_is_published_while_a_stray_copy_is_possible(
    verdict: Settled, copies: int
) -> None:
    harness = TaskHarness()
    entry = await claimed(harness)
    harness.publisher.settle(verdict)
    await asyncio.sleep(5)
    assert len(harness.publisher.published) == copies
    assert entry.stage is TaskStage.PUBLISHED


async def test_a_lost_queue_loses_no_key() -> None:
    harness = TaskHarness()
    await claimed(harness)
    harness.publisher.settle(Settled.CONFIRMED)
    assert harness.dispatcher.republish_all() == 0
    await asyncio.sleep(5)
    assert not harness.publisher.published


async def test_a_key_that_is_free_wakes_no_more_than_may_have_it() -> None:
    harness = TaskHarness()
    first = await claimed(harness, "first")
    for number in range(5):
        await keyed(harness, f"t{number}")
    assert harness.dispatcher.waiting == 0
    harness.event(first, EventKind.SUCCEEDED)
    assert harness.dispatcher.waiting == 1


async def test_the_number_of_a_dispatch_grows() -> None:
    harness = TaskHarness(max_attempts=9)
    entry = await claimed(harness, version=10)
    harness.failed(entry)
    await asyncio.sleep(5.1)
    harness.writer.writes[-1].succeed(version=12)
    harness.event(entry, EventKind.RELEASED, attempt=2)
    await turn()
    harness.writer.writes[-1].succeed(version=15)
    await turn()
    assert [one.message.fence for one in harness.publisher.published] == [10, 12, 15]


@pytest.mark.parametrize("answer", [EventKind.CANCELLED, EventKind.SUCCEEDED, None])
async def test_the_key_of_a_stopped_attempt_is_held_until_its_worker_answers(
    answer: EventKind | None,
) -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    first = await claimed(harness, "first")
    second = await keyed(harness, "second")
    harness.add("first", concurrencyKey="k", cancel=True)
    assert first.stage is TaskStage.FINISHED
    await asyncio.sleep(29.9)
    assert second.status.reason == "ConcurrencyLimit"
    if answer is not None:
        harness.event(first, answer)
    else:
        await asyncio.sleep(0.2)
    await turn()
    assert second.stage is TaskStage.CLAIMING
    assert not harness.dispatcher.keys.holds


async def test_the_key_of_a_stopped_attempt_is_held_for_the_time_limit_it_was_published_with() -> (
    None
):
    harness = TaskHarness(attempt_timeout_seconds=20)
    await claimed(harness, "first")
    second = await keyed(harness, "second")
    policy = replace(harness.config.policy, attempt_timeout_seconds=1)
    harness.dispatcher.config = replace(harness.config, policy=policy)
    harness.add("first", concurrencyKey="k", cancel=True)
    await asyncio.sleep(29.9)
    assert second.status.reason == "ConcurrencyLimit"
    await asyncio.sleep(0.2)
    assert second.stage is TaskStage.CLAIMING


async def test_the_key_of_a_suspended_attempt_is_held_too() -> None:
    harness = TaskHarness()
    first = await claimed(harness, "first")
    second = await keyed(harness, "second")
    harness.add("first", concurrencyKey="k", suspend=True)
    assert harness.writer.writes[-1].status.get("concurrencyKey") is None
    harness.writer.writes[-1].succeed()
    await turn()
    assert harness.dispatcher.keys._slots.keys_waited_for == ("k",)
    harness.event(first, EventKind.RELEASED)
    await turn()
    assert second.stage is TaskStage.CLAIMING


async def test_a_dead_letter_is_an_answer_too() -> None:
    harness = TaskHarness()
    await claimed(harness, "first")
    message = harness.publisher.published[0].message
    second = await keyed(harness, "second")
    harness.add("first", concurrencyKey="k", cancel=True)
    harness.dead_letter(message, **{"x-last-death-reason": "delivery_limit"})
    await turn()
    assert second.stage is TaskStage.CLAIMING


CLAIMED = {"phase": "Pending", "observedGeneration": 1, "concurrencyKey": "k"}


async def test_a_former_leaders_claim_stands_and_is_not_published_beside_itself() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    second = harness.add("second", concurrencyKey="k")
    first = harness.add("first", concurrencyKey="k", created=5.0, status=CLAIMED)
    harness.open()
    await asyncio.sleep(3)
    assert not harness.publisher.published
    assert (first.stage, second.status.reason) == (TaskStage.PUBLISHED, "ConcurrencyLimit")
    harness.event(first, EventKind.SUCCEEDED)
    await turn()
    assert second.stage is TaskStage.CLAIMING


async def test_an_unreported_claim_of_a_former_leader_is_recalled_uncounted() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    first = harness.add("first", concurrencyKey="k", status=CLAIMED)
    harness.open()
    for _ in range(4):
        harness.dispatcher.on_ready_count(0, reporting=True)
        await asyncio.sleep(10.1)
    assert (first.status.epoch, first.status.history) == (1, ())
    for write in harness.writer.writes:
        write.succeed()
    await turn()
    assert harness.publisher.published[0].message.epoch == 1


async def test_a_claim_that_another_status_replaced_is_written_before_it_is_published() -> None:
    harness = TaskHarness()
    await keyed(harness)
    claim = harness.writer.writes.pop()  # waits for a writer
    harness.add("t", concurrencyKey="k", suspend=True)
    await asyncio.sleep(3)
    suspended = harness.writer.writes.pop()  # replaces it, and is being written
    assert "concurrencyKey" not in suspended.status
    harness.add("t", concurrencyKey="k", suspend=False)
    await turn()
    for write in (claim, suspended):  # both are told of the one write, which has no claim
        write.succeed()
    await turn()
    assert not harness.publisher.published
    again = harness.writer.writes.pop()
    assert again.status["concurrencyKey"] == "k"
    again.succeed(version=7)
    assert harness.publisher.published[0].message.fence == 7


async def test_a_suspended_task_gives_its_key_to_others_while_the_broker_is_away() -> None:
    harness = TaskHarness()
    entry = await keyed(harness)
    harness.dispatcher.close()
    harness.writer.writes.pop().succeed()
    assert (entry.stage, entry.status.concurrency_key) == (TaskStage.WAITING, "k")
    other = harness.add("other", concurrencyKey="k")
    harness.add("t", concurrencyKey="k", suspend=True)
    harness.open()
    await turn()
    assert (entry.stage, entry.status.concurrency_key) == (TaskStage.HELD, "")
    assert other.stage is TaskStage.CLAIMING
