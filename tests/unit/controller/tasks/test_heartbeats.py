"""What the operator makes of heartbeats: progress, orders to stop, and the register of workers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.contract.command import CommandKind, WorkerCommand
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.metrics import WORKER_SLOTS, WORKERS
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.queue import QueueConfig, StopPolicy
from taskqueue.model.worker import WorkerState
from tests.unit.controller.fakes import TOKENS, Engine, turn, until_time
from tests.unit.controller.queues.test_reconciler import CONFIG, Case

pytestmark = pytest.mark.looptime

BEAT = Heartbeat(
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


def beat(
    engine: Engine, *running: RunningAttempt, routing_key: str | None = None, **changes: Any
) -> int:
    """Have a heartbeat come in; return its delivery tag."""
    sent = replace(BEAT, running=running, **changes)
    key = routing_key or sent.routing_key
    return engine.message(encode(sent), exchange=HEARTBEATS_EXCHANGE, routing_key=key)


def attempt(entry: TrackedTask, percent: int | None = None, message: str = "") -> RunningAttempt:
    """Return the first attempt of a Task as its worker tells of it."""
    return RunningAttempt(entry.task.uid, TOKENS.sign(entry.task.uid, 1, 0), percent, message)


async def running(engine: Engine) -> TrackedTask:
    """Hold a Task that is known, and written, to be running; at 3 s."""
    entry = await engine.published()
    await asyncio.sleep(0.5)
    engine.event(entry, EventKind.STARTED)
    await until_time(3)
    engine.writer.writes[-1].succeed()
    engine.writer.writes.clear()
    engine.channel.acked.clear()
    return entry


# Progress.


async def test_progress_of_a_running_attempt_reaches_the_status_after_two_seconds() -> None:
    engine = Engine()
    entry = await running(engine)
    tag = beat(engine, attempt(entry, 40, "resizing"))
    assert engine.channel.acked == [tag], "nothing hangs on it"
    await until_time(4.9)
    assert engine.writer.writes == []
    await until_time(5)
    (write,) = engine.writer.writes
    assert write.status["progress"] == {"percent": 40, "message": "resizing"}
    assert write.status["phase"] == "Running"
    assert not write.urgent
    assert engine.publisher.orders == []


async def test_only_the_latest_of_many_is_written() -> None:
    engine = Engine()
    entry = await running(engine)
    for percent in range(10):
        beat(engine, attempt(entry, percent))
        await asyncio.sleep(0.1)
    await until_time(10)
    assert [write.status["progress"] for write in engine.writer.writes] == [
        {"percent": 9, "message": ""}
    ]


async def test_the_same_again_is_not_written_again() -> None:
    engine = Engine()
    entry = await running(engine)
    for _ in range(3):
        beat(engine, attempt(entry, 40))
        await asyncio.sleep(10)
        for write in engine.writer.writes[-1:]:
            write.succeed()
    assert len(engine.writer.writes) == 1


async def test_a_heartbeat_without_progress_leaves_what_there_was() -> None:
    engine = Engine()
    entry = await running(engine)
    beat(engine, attempt(entry, 40))
    beat(engine, attempt(entry))
    await until_time(6)
    assert engine.writer.writes[-1].status["progress"] == {"percent": 40, "message": ""}


async def test_progress_goes_with_the_attempt() -> None:
    engine = Engine()
    entry = await running(engine)
    beat(engine, attempt(entry, 40))
    await until_time(6)
    engine.failed(entry)
    await until_time(9)
    assert engine.writer.phases[-1] == "Retrying"
    assert "progress" not in engine.writer.writes[-1].status


@pytest.mark.parametrize(("again", "kept"), [("pod-1", True), ("pod-2", False)])
async def test_progress_goes_with_the_worker_too(again: str, kept: bool) -> None:
    engine = Engine()
    entry = await running(engine)
    beat(engine, attempt(entry, 40))
    # After a reconnect, or because the broker has delivered it to another.
    engine.tasks._transitions.on_started(entry, attempt=1, worker=again)
    assert (entry.status.progress is not None) == kept


async def test_progress_goes_when_the_next_worker_does_not_know_the_handler() -> None:
    engine = Engine()
    entry = await running(engine)
    beat(engine, attempt(entry, 40))
    error = EventError(type="UnknownHandler", message="no handler resize")
    engine.event(entry, EventKind.FAILED, error=error)
    await until_time(6)
    assert engine.writer.phases == ["Blocked"]
    assert "progress" not in engine.writer.writes[0].status
    assert engine.writer.writes[0].status["worker"] == ""


async def test_one_whose_start_is_not_known_is_running() -> None:
    engine = Engine()
    entry = await engine.published()
    beat(engine, attempt(entry, 40), pod="pod-7")
    await until_time(10)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["worker"]) == ("Running", "pod-7")
    assert write.status["progress"] == {"percent": 40, "message": ""}
    assert engine.publisher.orders == []


async def test_one_that_waits_to_be_published_is_not() -> None:
    engine = Engine()
    entry = engine.add("t")
    beat(engine, attempt(entry, 40))
    await until_time(10)
    assert engine.writer.writes == []
    assert engine.publisher.orders == [], "it will be awaited"


# Orders.


async def test_what_no_task_waits_for_is_to_stop() -> None:
    engine = Engine()
    engine.open()
    beat(engine, RunningAttempt("uid-gone", "k.gone", 40))
    assert engine.publisher.orders == [
        WorkerCommand(CommandKind.CANCEL, token="k.gone", uid="uid-gone")
    ]


async def test_it_is_told_again_with_each_heartbeat() -> None:
    engine = Engine()
    for _ in range(3):
        beat(engine, RunningAttempt("uid-gone", "k.gone"))
    assert len(engine.publisher.orders) == 3


async def test_an_attempt_taken_back_is_to_stop_and_says_nothing_of_the_task() -> None:
    engine = Engine()
    entry = await running(engine)
    engine.add("t", suspend=True)
    await turn()
    beat(engine, attempt(entry, 40))
    assert engine.publisher.orders == [], "not before this is on record"
    engine.writer.writes[-1].succeed()
    await turn()
    released = WorkerCommand(CommandKind.RELEASE, attempt(entry).token, entry.task.uid)
    assert engine.publisher.orders == [released]
    beat(engine, attempt(entry, 40))
    assert engine.publisher.orders[1:] == [
        WorkerCommand(CommandKind.CANCEL, attempt(entry).token, entry.task.uid)
    ]
    await asyncio.sleep(10)
    assert "progress" not in engine.writer.writes[-1].status


async def test_a_false_token_says_nothing_of_the_task() -> None:
    engine = Engine()
    entry = await running(engine)
    beat(engine, replace(attempt(entry, 99), token="k.guessed"))
    await until_time(10)
    assert engine.writer.writes == []
    assert [order.token for order in engine.publisher.orders] == ["k.guessed"]


async def test_what_is_awaited_is_left_alone_beside_what_is_not() -> None:
    engine = Engine()
    entry = await running(engine)
    beat(engine, attempt(entry), RunningAttempt("uid-gone", "k.gone"))
    assert [order.uid for order in engine.publisher.orders] == ["uid-gone"]


# Whom it comes from.


async def test_it_is_passed_on_to_the_register() -> None:
    engine = Engine()
    beat(engine)
    beat(engine, state=WorkerState.STOPPED)
    assert engine.beats == [BEAT, replace(BEAT, state=WorkerState.STOPPED)]


@pytest.mark.parametrize(
    "routing_key",
    ["shop.mail.worker.heartbeat", "shop.q.task.succeeded", "shop.q", "other.q.worker.heartbeat"],
)
async def test_one_that_speaks_for_another_queue_is_ignored(
    routing_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    entry = await running(engine)
    tag = beat(
        engine,
        attempt(entry, 40),
        RunningAttempt("uid-gone", "k.gone"),
        routing_key=routing_key,
    )
    await until_time(10)
    assert (engine.beats, engine.publisher.orders, engine.writer.writes) == ([], [], [])
    assert engine.channel.acked == [tag]
    assert [record.getMessage() for record in caplog.records] == ["heartbeat.forged"]


async def test_what_is_none_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    tag = engine.message(b"{}", exchange=HEARTBEATS_EXCHANGE, routing_key="shop.q.worker.heartbeat")
    assert (engine.channel.acked, engine.beats, engine.given_up) == ([tag], [], [])
    assert [record.getMessage() for record in caplog.records] == ["heartbeat.invalid"]


async def test_a_queue_without_any_task_has_workers_all_the_same() -> None:
    engine = Engine()
    beat(engine, RunningAttempt("uid-gone", "k.gone"), queue="idle")
    assert [one.queue for one in engine.beats] == ["idle"]
    assert [order.uid for order in engine.publisher.orders] == ["uid-gone"]


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


async def test_workers_are_told_by_name_and_counted() -> None:
    case = Case()
    case.connect()
    case.controller.on_heartbeat(replace(BEAT, pod="b"))
    case.controller.on_heartbeat(replace(BEAT, pod="a", state=WorkerState.DRAINING))
    await tick(case)
    assert case.status["workers"] == [worker("a"), worker("b")]
    assert gauges() == (2, 4), "one that drains has no slots to offer"


async def test_one_that_stops_is_gone_with_the_next_status() -> None:
    case = Case()
    case.connect()
    for state in (WorkerState.READY, WorkerState.STOPPED):
        case.controller.on_heartbeat(replace(BEAT, state=state))
        await tick(case)
    assert [bool(status["workers"]) for status in case.client.statuses] == [True, False]
    assert gauges() == (0, 0)


async def test_what_one_says_of_itself_is_what_is_known_of_it() -> None:
    case = Case()
    attempt = RunningAttempt("u", "k.1")
    case.controller.on_heartbeat(replace(BEAT, pod="a", running=(attempt,), busy=3))
    case.controller.on_heartbeat(replace(BEAT, pod="b", running=(attempt,)))
    case.controller.on_heartbeat(replace(BEAT, pod="c", state=WorkerState.STOPPED, busy=0))
    views = case.controller.registry.views.values()
    assert [(one.pod, one.running, one.busy, one.state) for one in views] == [
        ("a", 1, 3, WorkerState.READY),
        ("b", 1, 1, WorkerState.READY),
        ("c", 0, 0, WorkerState.STOPPED),
    ]


async def test_one_that_falls_silent_is_lost_and_this_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case()
    case.connect()
    case.controller.on_heartbeat(BEAT)
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
        case.controller.on_heartbeat(BEAT)
        await tick(case)
    assert len(case.client.statuses) == 1


async def test_more_workers_than_the_status_tells_of() -> None:
    case = Case()
    case.connect()
    for number in range(25):
        case.controller.on_heartbeat(replace(BEAT, pod=f"pod-{number:02}"))
    await tick(case)
    assert [one["pod"] for one in case.status["workers"]] == [f"pod-{n:02}" for n in range(20)]
    assert gauges() == (25, 100)


async def test_slots_of_workers_from_elsewhere_widen_the_window() -> None:
    case = Case(replace(CONFIG, concurrency=2))
    case.connect()
    await tick(case)
    assert case.dispatcher.slots == 0
    case.controller.on_heartbeat(replace(BEAT, slots=7))
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
        case.controller.on_heartbeat(replace(BEAT, pod=pod, running=attempts))
    case.controller.on_heartbeat(replace(BEAT, pod="idle"))
    assert case.busy() == busy


async def test_workers_that_decide_by_their_cpus_are_as_many_as_their_slots_need() -> None:
    case = Case(CONFIG)
    session = case.connect()
    for pod in ("a", "b", "c"):
        case.controller.on_heartbeat(replace(BEAT, pod=pod, slots=8))
    case.dispatcher.published, session.ready = 20, 0
    assert case.busy() == 3
    case.controller.on_heartbeat(replace(BEAT, pod="c", slots=8, state=WorkerState.DRAINING))
    assert case.controller._slots(case.controller.config) == 8


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
    session.problem = "no statistics"
    assert unused() == 0.0
    session.problem, session.declared = "", False
    await asyncio.sleep(10)
    assert unused() == 0.0
