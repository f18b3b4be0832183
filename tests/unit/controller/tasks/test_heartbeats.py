"""How the operator handles heartbeats: progress, commands to stop, and the worker registry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.metrics import HEARTBEATS_DROPPED, WORKER_SLOTS, WORKERS
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueConfig, StopPolicy
from taskqueue.model.token import TokenKeys
from taskqueue.model.worker import WorkerState
from tests.unit.controller.fakes import TOKENS, TaskHarness, turn
from tests.unit.controller.queues.test_reconciler import CONFIG, Case
from tests.unit.controller.virtual_time import until_time

pytestmark = pytest.mark.looptime

HEARTBEAT = Heartbeat(
    namespace="shop",
    queue="q",
    pod="pod-1",
    node="node-1",
    cpus=2.0,
    slots=4,
    handlers=("resize",),
    running=(),
    state=WorkerState.READY,
)


def deliver(
    harness: TaskHarness,
    *running: RunningAttempt,
    routing_key: str | None = None,
    broker: object | None = None,
    **changes: Any,
) -> int:
    """Deliver a heartbeat; return its delivery tag."""
    sent = replace(HEARTBEAT, running=running, **changes)
    key = routing_key or sent.routing_key
    return harness.message(
        encode(sent), exchange=HEARTBEATS_EXCHANGE, routing_key=key, broker=broker
    )


def attempt(entry: TrackedTask, percent: int | None = None, message: str = "") -> RunningAttempt:
    """Return the first attempt of a Task as its worker reports it."""
    return RunningAttempt(entry.task.uid, TOKENS.sign(entry.task.uid, 1, 0), percent, message)


async def running(harness: TaskHarness) -> TrackedTask:
    """Hold a Task that is known, and written, to be running; at 3 s."""
    entry = await harness.published()
    await asyncio.sleep(0.5)
    harness.event(entry, EventKind.STARTED)
    await until_time(3)
    harness.writer.writes[-1].succeed()
    harness.writer.writes.clear()
    harness.channel.acked.clear()
    return entry


# Progress.


async def test_progress_of_a_running_attempt_reaches_the_status_after_two_seconds() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    tag = deliver(harness, attempt(entry, 40, "resizing"))
    assert harness.channel.acked == [tag], "nothing hangs on it"
    await until_time(4.9)
    assert harness.writer.writes == []
    await until_time(5)
    (write,) = harness.writer.writes
    assert write.status["progress"] == {"percent": 40, "message": "resizing"}
    assert write.status["phase"] == "Running"
    assert not write.urgent
    assert harness.publisher.commands == []


async def test_only_the_latest_of_many_is_written() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    for percent in range(10):
        deliver(harness, attempt(entry, percent))
        await asyncio.sleep(0.1)
    await until_time(10)
    assert [write.status["progress"] for write in harness.writer.writes] == [
        {"percent": 9, "message": ""}
    ]


async def test_unchanged_progress_is_not_written_again() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    for _ in range(3):
        deliver(harness, attempt(entry, 40))
        await asyncio.sleep(10)
        for write in harness.writer.writes[-1:]:
            write.succeed()
    assert len(harness.writer.writes) == 1


async def test_a_heartbeat_without_progress_leaves_what_there_was() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, attempt(entry, 40))
    deliver(harness, attempt(entry))
    await until_time(6)
    assert harness.writer.writes[-1].status["progress"] == {"percent": 40, "message": ""}


async def test_progress_goes_with_the_attempt() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, attempt(entry, 40))
    await until_time(6)
    harness.failed(entry)
    await until_time(9)
    assert harness.writer.phases[-1] == "Retrying"
    assert "progress" not in harness.writer.writes[-1].status


@pytest.mark.parametrize(("again", "kept"), [("pod-1", True), ("pod-2", False)])
async def test_progress_goes_with_the_worker_too(again: str, kept: bool) -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, attempt(entry, 40))
    # After a reconnect, or because the broker has delivered it to another.
    harness.event(entry, EventKind.STARTED, worker=again)
    assert (entry.status.progress is not None) == kept


async def test_progress_goes_when_the_next_worker_does_not_know_the_handler() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, attempt(entry, 40))
    error = EventError(type="UnknownHandler", message="no handler resize", reserved=True)
    harness.event(entry, EventKind.FAILED, error=error)
    await until_time(6)
    assert harness.writer.phases == ["Blocked"]
    assert not {"progress", "worker"} & harness.writer.writes[0].status.keys()


async def test_a_heartbeat_sets_a_task_running_whose_start_is_unknown() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    deliver(harness, attempt(entry, 40), pod="pod-7")
    await until_time(10)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["worker"]) == ("Running", "pod-7")
    assert write.status["progress"] == {"percent": 40, "message": ""}
    assert harness.publisher.commands == []


async def test_a_heartbeat_does_not_set_a_queued_task_running() -> None:
    harness = TaskHarness()
    entry = harness.add("t")
    deliver(harness, attempt(entry, 40))
    await until_time(10)
    assert harness.writer.writes == []
    assert harness.publisher.commands == [], "it will be awaited"


# Orders.


async def test_an_attempt_no_task_waits_for_gets_a_cancel_command() -> None:
    harness = TaskHarness()
    harness.open()
    deliver(harness, RunningAttempt("uid-unknown", "k.unknown", 40))
    assert harness.publisher.commands == [
        WorkerCommand(CommandKind.CANCEL, token="k.unknown", uid="uid-unknown")
    ]


async def test_the_cancel_command_is_repeated_with_each_heartbeat() -> None:
    harness = TaskHarness()
    for _ in range(3):
        deliver(harness, RunningAttempt("uid-unknown", "k.unknown"))
    assert len(harness.publisher.commands) == 3


async def test_a_recalled_attempt_is_stopped_and_its_progress_ignored() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    harness.add("t", suspend=True)
    await turn()
    deliver(harness, attempt(entry, 40))
    assert harness.publisher.commands == [], "not before this is on record"
    harness.writer.writes[-1].succeed()
    await turn()
    released = WorkerCommand(CommandKind.RELEASE, attempt(entry).token, entry.task.uid)
    assert harness.publisher.commands == [released]
    deliver(harness, attempt(entry, 40))
    assert harness.publisher.commands[1:] == [
        WorkerCommand(CommandKind.CANCEL, attempt(entry).token, entry.task.uid)
    ]
    await asyncio.sleep(10)
    assert "progress" not in harness.writer.writes[-1].status


async def test_progress_with_a_forged_token_is_ignored() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, replace(attempt(entry, 99), token="k.guessed"))
    await until_time(10)
    assert harness.writer.writes == []
    assert [command.token for command in harness.publisher.commands] == ["k.guessed"]


async def test_only_attempts_nobody_waits_for_are_stopped() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, attempt(entry), RunningAttempt("uid-unknown", "k.unknown"))
    assert [command.uid for command in harness.publisher.commands] == ["uid-unknown"]


# Attempts that are named in full.


def named(entry: TrackedTask, attempt: int = 1, epoch: int = 0, **changes: Any) -> RunningAttempt:
    """Return an attempt of a Task with its number, its epoch and the token of both."""
    token = TOKENS.sign(entry.task.uid, attempt, epoch)
    return replace(
        RunningAttempt(entry.task.uid, token, 40, "", attempt=attempt, epoch=epoch), **changes
    )


async def test_progress_counts_whichever_key_has_signed_the_token() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    old = TokenKeys(current="k0", keys={"k0": b"old"})
    rotated = TokenKeys(current="k", keys={**TOKENS.keys, **old.keys})
    harness.tasks.inbox._tokens = rotated
    deliver(harness, named(entry, token=old.sign(entry.task.uid, 1, 0)))
    await until_time(10)
    assert harness.writer.writes[-1].status["progress"]["percent"] == 40
    assert harness.publisher.commands == []


@pytest.mark.parametrize(
    "changes",
    [{"attempt": 2}, {"epoch": 1}, {"token": "k.guessed"}, {"uid": "uid-another"}],
)
async def test_an_attempt_with_a_token_of_another_is_neither_believed_nor_stopped(
    changes: dict[str, Any],
) -> None:
    harness = TaskHarness()
    entry = await running(harness)
    dropped = HEARTBEATS_DROPPED.labels("forged")._value.get()
    deliver(harness, replace(named(entry), **changes))
    await until_time(10)
    assert (harness.writer.writes, harness.publisher.commands) == ([], [])
    assert HEARTBEATS_DROPPED.labels("forged")._value.get() == dropped + 1
    assert harness.proven == [False]


@pytest.mark.parametrize(("attempt", "epoch"), [(2, 0), (1, 1)])
async def test_another_attempt_of_the_task_is_stopped(attempt: int, epoch: int) -> None:
    harness = TaskHarness()
    entry = await running(harness)
    stray = named(entry, attempt, epoch)
    deliver(harness, stray)
    assert [command.token for command in harness.publisher.commands] == [stray.token]


async def test_a_worker_is_proven_by_an_attempt_with_its_token() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness)
    deliver(harness, named(entry))
    deliver(harness, attempt(entry))
    deliver(harness, RunningAttempt("uid-unknown", "k.unknown"))
    assert harness.proven == [False, True, True, False]


# Whom it comes from.


@pytest.mark.parametrize("state", WorkerState)
async def test_a_heartbeat_by_another_broker_than_the_queues_is_ignored_and_counted(
    state: WorkerState,
) -> None:
    harness = TaskHarness()
    entry = await running(harness)
    dropped = HEARTBEATS_DROPPED.labels("foreign")._value.get()
    listed = (named(entry), RunningAttempt("uid-unknown", "k.unknown"))
    tag = deliver(harness, *listed, broker=object(), state=state, busy=100_000)
    await until_time(10)
    assert (harness.heartbeats, harness.publisher.commands, harness.writer.writes) == ([], [], [])
    assert harness.channel.acked == [tag]
    assert HEARTBEATS_DROPPED.labels("foreign")._value.get() == dropped + 1


async def test_a_worker_says_nothing_of_an_attempt_of_another_queue() -> None:
    harness = TaskHarness()
    entry = await running(harness)
    deliver(harness, named(entry), queue="another")
    await until_time(10)
    assert (harness.publisher.commands, harness.writer.writes) == ([], [])


async def test_heartbeats_are_passed_on_to_the_registry() -> None:
    harness = TaskHarness()
    deliver(harness)
    deliver(harness, state=WorkerState.STOPPED)
    assert harness.heartbeats == [HEARTBEAT, replace(HEARTBEAT, state=WorkerState.STOPPED)]


@pytest.mark.parametrize(
    "routing_key",
    ["shop.mail.worker.heartbeat", "shop.q.task.succeeded", "shop.q", "other.q.worker.heartbeat"],
)
async def test_a_heartbeat_for_another_queue_is_ignored(
    routing_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    harness = TaskHarness()
    entry = await running(harness)
    tag = deliver(
        harness,
        attempt(entry, 40),
        RunningAttempt("uid-unknown", "k.unknown"),
        routing_key=routing_key,
    )
    await until_time(10)
    assert (harness.heartbeats, harness.publisher.commands, harness.writer.writes) == ([], [], [])
    assert harness.channel.acked == [tag]
    assert [record.getMessage() for record in caplog.records] == ["heartbeat.forged"]


async def test_an_invalid_heartbeat_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    harness = TaskHarness()
    tag = harness.message(
        b"{}", exchange=HEARTBEATS_EXCHANGE, routing_key="shop.q.worker.heartbeat"
    )
    assert (harness.channel.acked, harness.heartbeats, harness.given_up) == ([tag], [], [])
    assert [record.getMessage() for record in caplog.records] == ["heartbeat.invalid"]


async def test_a_queue_without_any_task_has_workers_all_the_same() -> None:
    harness = TaskHarness()
    deliver(harness, RunningAttempt("uid-unknown", "k.unknown"), queue="idle")
    assert [one.queue for one in harness.heartbeats] == ["idle"]
    assert [command.uid for command in harness.publisher.commands] == ["uid-unknown"]


# The register of a TaskQueue.


def worker(pod: str, node: str = "node-1") -> dict[str, Any]:
    return {"pod": pod, "node": node, "cpus": 2.0, "slots": 4, "handlers": ["resize"]}


def gauges() -> tuple[float, float]:
    workers, slots = (gauge.labels(*CONFIG.key)._value.get() for gauge in (WORKERS, WORKER_SLOTS))
    return workers, slots


async def tick(case: Case) -> None:
    """Have the loop run once, a second later."""
    await asyncio.sleep(1)
    await case.controller._reconcile()


async def test_the_status_lists_workers_by_name_and_counts_them() -> None:
    case = Case()
    case.connect()
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="b"))
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="a", state=WorkerState.DRAINING))
    await tick(case)
    assert case.status["workers"] == [worker("a"), worker("b")]
    assert gauges() == (2, 4), "one that drains has no slots to offer"


async def test_a_stopped_worker_leaves_the_next_status() -> None:
    case = Case()
    case.connect()
    for state in (WorkerState.READY, WorkerState.STOPPED):
        case.controller.on_heartbeat(replace(HEARTBEAT, state=state))
        await tick(case)
    assert [bool(status["workers"]) for status in case.client.statuses] == [True, False]
    assert gauges() == (0, 0)


async def test_the_registry_has_what_workers_report() -> None:
    case = Case()
    attempt = RunningAttempt("u", "k.1")
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="a", running=(attempt,), busy=3))
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="b", running=(attempt,)))
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="c", state=WorkerState.STOPPED, busy=0))
    views = case.controller.registry.views.values()
    assert [(one.pod, one.running, one.busy, one.state) for one in views] == [
        ("a", 1, 3, WorkerState.READY),
        ("b", 1, 1, WorkerState.READY),
        ("c", 0, 0, WorkerState.STOPPED),
    ]


async def test_a_worker_without_heartbeats_is_lost_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case()
    case.connect()
    case.controller.on_heartbeat(HEARTBEAT)
    await until_time(WORKER_LOST_SECONDS - 1.1)
    await tick(case)
    assert len(case.status["workers"]) == 1
    await tick(case)
    assert case.status["workers"] == []
    assert [record.getMessage() for record in caplog.records] == ["worker.lost"]


async def test_heartbeats_that_bring_no_news_cost_no_write() -> None:
    case = Case()
    case.connect()
    for _ in range(20):
        case.controller.on_heartbeat(HEARTBEAT)
        await tick(case)
    assert len(case.client.statuses) == 1


async def test_the_status_lists_twenty_workers_at_most() -> None:
    case = Case()
    case.connect()
    for number in range(25):
        case.controller.on_heartbeat(replace(HEARTBEAT, pod=f"pod-{number:02}"))
    await tick(case)
    assert [one["pod"] for one in case.status["workers"]] == [f"pod-{n:02}" for n in range(20)]
    assert gauges() == (25, 100)


async def test_slots_of_workers_from_elsewhere_widen_the_window() -> None:
    case = Case(replace(CONFIG, concurrency=2))
    case.connect()
    await tick(case)
    assert case.dispatcher.slots == 0
    case.controller.on_heartbeat(replace(HEARTBEAT, slots=7))
    await tick(case)
    assert case.dispatcher.slots == 7


@pytest.mark.parametrize(("policy", "busy"), [(StopPolicy.NONE, 0), (StopPolicy.HOLD_AND_DRAIN, 2)])
async def test_a_held_pool_keeps_the_workers_that_say_they_run_something(
    policy: StopPolicy, busy: int
) -> None:
    config: QueueConfig = replace(CONFIG, stop_policy=policy)
    case = Case(config)
    case.connect()
    attempts = (RunningAttempt("u", "k.1"), RunningAttempt("v", "k.2"))
    for pod in ("a", "b"):
        case.controller.on_heartbeat(replace(HEARTBEAT, pod=pod, running=attempts))
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="idle"))
    assert case.busy() == busy


async def test_workers_that_decide_by_their_cpus_are_as_many_as_their_slots_need() -> None:
    case = Case(CONFIG)
    session = case.connect()
    for pod in ("a", "b", "c"):
        case.controller.on_heartbeat(replace(HEARTBEAT, pod=pod, slots=8))
    case.dispatcher.published, session.ready = 20, 0
    assert case.busy() == 3
    case.controller.on_heartbeat(replace(HEARTBEAT, pod="c", slots=8, state=WorkerState.DRAINING))
    assert case.controller.registry.slots_each == 8


@pytest.mark.looptime
async def test_a_queue_is_unused_while_nothing_of_it_is_at_the_broker() -> None:
    case = Case(CONFIG)
    session = case.connect()

    def unused() -> float:
        return case.controller._unused_seconds(case.controller._update_estimate())

    case.dispatcher.waiting = 5  # held in the operator: no worker can have it
    assert unused() == 0.0
    await asyncio.sleep(30)
    assert unused() == pytest.approx(30.0)
    case.dispatcher.published = 1
    assert unused() == 0.0
    case.dispatcher.published = 0
    assert unused() == 0.0
    await asyncio.sleep(10)
    session.error = "no statistics"
    assert unused() == 0.0
    session.error, session.declared = "", False
    await asyncio.sleep(10)
    assert unused() == 0.0
