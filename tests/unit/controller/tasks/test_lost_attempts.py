"""Attempts whose message the broker has delivered again, in virtual time.

``pod-1`` runs the attempt; ``pod-2`` is given its message by the broker, and gives it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.lost_attempts import MISSED_SECONDS
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.limits import HEARTBEAT_SECONDS, REPORT_GRACE_SECONDS, WORKER_LOST_SECONDS
from taskqueue.model.task import Phase
from taskqueue.model.worker import WorkerState
from tests.unit.controller.fakes import TaskHarness, turn

pytestmark = pytest.mark.looptime


def heartbeat(
    harness: TaskHarness, *names: TrackedTask, pod: str = "pod-1", cut: bool = False
) -> None:
    """Have a worker say that it runs the attempts of these Tasks, and no others."""
    running = tuple(
        RunningAttempt(one.uid, harness.token(one), attempt=1, epoch=0) for one in names
    )
    said = Heartbeat(
        namespace="shop",
        queue="q",
        pod=pod,
        node="",
        cpus=1.0,
        slots=1,
        handlers=(),
        running=running,
        state=WorkerState.READY,
    )
    body = encode(said)
    if cut:
        body = body.replace(b'"running":', b'"runningCut":true,"running":')
    harness.message(body, exchange=HEARTBEATS_EXCHANGE, routing_key="shop.q.worker.heartbeat")


def give_back(harness: TaskHarness, entry: TrackedTask, pod: str = "pod-2") -> int:
    return harness.event(entry, EventKind.RELEASED, worker=pod, deliveries=1)


async def run_by_one_given_to_another(**policy: Any) -> tuple[TaskHarness, TrackedTask]:
    harness = TaskHarness(**policy)
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    harness.channel.acked.clear()
    tag = give_back(harness, entry)
    assert harness.channel.acked == [tag]
    await turn()
    assert harness.publisher.published == []
    return harness, entry


async def is_published_after(harness: TaskHarness, seconds: float) -> bool:
    await asyncio.sleep(seconds)
    await turn()
    return bool(harness.publisher.published)


async def test_a_worker_that_comes_back_goes_on_and_nothing_is_counted() -> None:
    harness, entry = await run_by_one_given_to_another(max_deliveries=1)
    for _ in range(20):
        assert not await is_published_after(harness, WORKER_LOST_SECONDS - 1)
        heartbeat(harness, entry)
    assert (entry.stage, entry.deliveries) == (TaskStage.PUBLISHED, 0)
    harness.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.SUCCEEDED
    assert [one.attempt for one in entry.status.history] == [1]
    assert not await is_published_after(harness, 100)


async def test_a_worker_that_is_silent_is_lost_and_the_delivery_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness, entry = await run_by_one_given_to_another(max_deliveries=3)
    assert not await is_published_after(harness, WORKER_LOST_SECONDS - 0.1)
    assert await is_published_after(harness, 0.2)
    (again,) = harness.publisher.published
    assert (again.message.token, again.message.max_deliveries) == (harness.token(entry), 2)
    assert [record.getMessage() for record in caplog.records] == ["attempt.lost"]
    assert entry.status.phase is Phase.PENDING


async def test_a_worker_that_is_silent_may_have_had_the_last_delivery() -> None:
    harness, entry = await run_by_one_given_to_another(max_deliveries=1, max_attempts=1)
    await asyncio.sleep(WORKER_LOST_SECONDS + 0.1)
    assert (entry.status.phase, entry.status.reason) == (Phase.FAILED, "WorkerLost")
    harness.writer.writes[-1].succeed()
    assert harness.recorded == ["t"]


async def test_breaks_of_the_network_are_not_added_up() -> None:
    harness, entry = await run_by_one_given_to_another(max_deliveries=3)
    for _ in range(10):
        heartbeat(harness, entry)
        give_back(harness, entry)  # the report comes again, or others of the message do
        assert not await is_published_after(harness, HEARTBEAT_SECONDS)
    assert await is_published_after(harness, WORKER_LOST_SECONDS)
    assert harness.publisher.published[0].message.max_deliveries == 2


def said_nothing_of_it(harness: TaskHarness, entry: TrackedTask) -> None:
    heartbeat(harness)


def lost_its_pod(harness: TaskHarness, entry: TrackedTask) -> None:
    harness.dispatcher.on_running_reported("pod-1", ())


@pytest.mark.parametrize("is_seen", [said_nothing_of_it, lost_its_pod])
async def test_a_worker_that_runs_it_no_more_is_given_a_moment_to_report(
    is_seen: Callable[[TaskHarness, TrackedTask], None],
) -> None:
    harness, entry = await run_by_one_given_to_another()
    is_seen(harness, entry)
    assert not await is_published_after(harness, MISSED_SECONDS - 0.1)
    is_seen(harness, entry)
    assert await is_published_after(harness, 0.2)


async def test_an_outcome_in_that_moment_counts() -> None:
    harness, entry = await run_by_one_given_to_another()
    heartbeat(harness)
    await asyncio.sleep(1)
    harness.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.SUCCEEDED
    assert not await is_published_after(harness, 100)


async def test_a_worker_that_names_it_again_runs_it() -> None:
    harness, entry = await run_by_one_given_to_another()
    heartbeat(harness)
    await asyncio.sleep(1)
    heartbeat(harness, entry)
    assert not await is_published_after(harness, WORKER_LOST_SECONDS - 2)


@pytest.mark.parametrize("how", ["another pod", "cut"])
async def test_who_else_does_not_name_it_means_nothing(how: str) -> None:
    harness, _ = await run_by_one_given_to_another()
    if how == "cut":
        heartbeat(harness, cut=True)
    else:
        heartbeat(harness, pod="pod-2")
    assert not await is_published_after(harness, WORKER_LOST_SECONDS - 1)


async def test_a_restarted_worker_that_gets_its_own_message_gives_the_attempt_up() -> None:
    harness, entry = await run_by_one_given_to_another(max_deliveries=3)
    give_back(harness, entry, pod="pod-1")
    assert await is_published_after(harness, 0.1)
    assert harness.publisher.published[0].message.max_deliveries == 2


async def test_a_worker_that_stops_in_order_gives_the_attempt_up_uncounted() -> None:
    harness, entry = await run_by_one_given_to_another(max_deliveries=3)
    harness.event(entry, EventKind.RELEASED)
    assert await is_published_after(harness, 0.1)
    assert harness.publisher.published[0].message.max_deliveries == 3


async def test_what_no_worker_is_known_to_run_is_published_at_once() -> None:
    harness = TaskHarness(max_deliveries=3)
    entry = await harness.published()
    give_back(harness, entry)
    assert await is_published_after(harness, 0.0)
    assert harness.publisher.published[0].message.max_deliveries == 2


async def test_a_heartbeat_alone_says_who_runs_it() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    heartbeat(harness, entry)
    give_back(harness, entry)
    assert not await is_published_after(harness, WORKER_LOST_SECONDS - 1)
    assert await is_published_after(harness, 2)


async def test_a_checkpoint_says_that_it_runs_on() -> None:
    harness, entry = await run_by_one_given_to_another()
    await asyncio.sleep(WORKER_LOST_SECONDS - 1)
    harness.event(entry, EventKind.CHECKPOINT, checkpoint={"step": 1})
    assert not await is_published_after(harness, WORKER_LOST_SECONDS - 1)


async def test_a_lost_attempt_is_awaited_no_more_once_it_is_published_again() -> None:
    harness, entry = await run_by_one_given_to_another()
    await asyncio.sleep(WORKER_LOST_SECONDS + 1)
    harness.publisher.settle(Settled.CONFIRMED)
    give_back(harness, entry, pod="pod-3")  # the second worker died before it was heard of
    assert await is_published_after(harness, 0.1)
    assert harness.publisher.published[0].message.max_deliveries == 1


async def test_a_queue_that_is_lost_does_not_have_it_published_beside_its_worker() -> None:
    harness, _ = await run_by_one_given_to_another()
    assert harness.dispatcher.republish_all() == 0
    assert not await is_published_after(harness, 1)


@pytest.mark.parametrize("is_given_back_before", [False, True])
async def test_nobody_is_lost_while_the_operator_hears_nobody(is_given_back_before: bool) -> None:
    """A broker that is away for long, and then delivers everything again."""
    harness = TaskHarness(max_deliveries=1)
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    if is_given_back_before:
        give_back(harness, entry)
    harness.dispatcher.close()
    await asyncio.sleep(WORKER_LOST_SECONDS * (0.9 if is_given_back_before else 9))
    harness.open()
    give_back(harness, entry)
    assert not await is_published_after(harness, WORKER_LOST_SECONDS - 1)
    harness.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.SUCCEEDED


async def test_its_time_limit_counts_all_the_while() -> None:
    harness, entry = await run_by_one_given_to_another(attempt_timeout_seconds=60, max_attempts=1)
    for _ in range(8):
        harness.dispatcher.on_ready_count(0, reporting=True)
        assert entry.status.phase is Phase.RUNNING
        heartbeat(harness, entry)
        await asyncio.sleep((60 + REPORT_GRACE_SECONDS) / 8)
    harness.dispatcher.on_ready_count(0, reporting=True)
    assert (entry.status.phase, entry.status.history[-1].reason) == (Phase.FAILED, "Timeout")


@pytest.mark.parametrize("edit", [{"cancel": True}, {"suspend": True}])
async def test_it_can_be_stopped_meanwhile(edit: dict[str, bool]) -> None:
    harness, entry = await run_by_one_given_to_another()
    token = harness.token(entry)
    harness.add("t", **edit)
    harness.writer.writes[-1].succeed()
    assert [command.token for command in harness.publisher.commands] == [token]
    assert not await is_published_after(harness, 100)


async def test_an_attempt_with_a_key_is_claimed_again_at_once() -> None:
    harness = TaskHarness()
    entry = harness.add("t", concurrencyKey="k")
    harness.open()
    await turn()
    harness.writer.writes[-1].succeed()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    harness.event(entry, EventKind.STARTED)
    give_back(harness, entry)
    assert entry.status.epoch == 1
    await turn()
    assert entry.stage is TaskStage.CLAIMING
