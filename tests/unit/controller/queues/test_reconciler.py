"""One TaskQueue's loop: a failing step does not stop the others, and the status is true."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.queues.backlog import BacklogEstimate
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.queues.reconciler import QueueReconciler
from taskqueue.controller.queues.sinks import QueueSinks
from taskqueue.controller.queues.statistics import StatisticsReaders
from taskqueue.controller.queues.throughput import Totals
from taskqueue.controller.queues.user_sweeper import UserSweeper
from taskqueue.controller.queues.worker_credentials import WorkerCredentials
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.missing_handlers import MissingHandlers
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import Condition, QueueConfig, StopPolicy
from taskqueue.model.scaling import BacklogTarget, ScalingPolicy
from taskqueue.model.task import Phase

CONFIG = QueueConfig(namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit")


class FakeDispatcher:
    def __init__(self) -> None:
        self.waiting = self.published = self.slots = self.excess = 0
        self.missing = MissingHandlers()
        self.limited_by = ""
        self.registered: list[str] = []
        self.config: QueueConfig | None = None

    def close(self) -> None: ...

    def send_drain(self, pod: str) -> None: ...

    def on_handlers_registered(self, names: Collection[str]) -> None:
        self.registered += names

    def pop_most_published(self) -> int:
        return self.published


class FakeClient:
    """Answers as the test sets: an error to raise, or an object; keeps the statuses."""

    def __init__(self) -> None:
        self.secret: ApiError | Mapping[str, Any] = ApiError(404, "NotFound", "no")
        self.status: ApiError | None = None
        self.statuses: list[dict[str, Any]] = []

    async def get(self, path: str, **_: str) -> Mapping[str, Any]:
        if isinstance(self.secret, ApiError):
            raise self.secret
        return self.secret

    async def merge(self, path: str, body: Any) -> None:
        if self.status is not None:
            raise self.status
        self.statuses.append(body["status"])


class FakeSession:
    """A broker session in the state that the test sets."""

    def __init__(self) -> None:
        self.condition = Condition("BrokerConnected", True, "Connected", "")
        self.declared = True
        self.ready: int | None = 0
        self.consumers: int | None = None
        self.dead_letters: int | None = 0
        self.secret = self.parameters = None
        self.credentials = WorkerCredentials(
            cast(ApiClient, None),
            installation="default",
            sweeper=UserSweeper("default", lambda: None),
            monotonic=lambda: 0.0,
        )
        self.error = ""
        self.steps: list[str] = []
        self.estimates = 0

    def known_parameters(self, config: QueueConfig) -> None: ...

    async def ensure_declared(self, config: QueueConfig) -> None:
        self.steps.append("ensure_declared")

    async def count_messages(self) -> None: ...

    def estimate_backlog(
        self, *, waiting: int, published: int, workers_foreign: int, most_published: int
    ) -> BacklogEstimate:
        self.estimates += 1
        if not self.declared or self.ready is None:
            return BacklogEstimate(backlog=None, ready=None, running=None, error="no broker")
        backlog = waiting + max(published, self.ready) + workers_foreign
        running = max(published - self.ready, 0) + workers_foreign
        return BacklogEstimate(backlog=backlog, ready=self.ready, running=running, error=self.error)

    async def close(self) -> None:
        self.steps.append("close")


class FakeSinks:
    """There are none."""

    def set_on_change(self, on_change: object) -> None: ...

    async def reconcile(self, config: object, broker: object) -> None: ...

    async def close(self) -> None: ...

    def conditions(self, config: QueueConfig) -> tuple[Condition, ...]:
        return ()


class FakeFinalizer:
    def __init__(self, steps: list[str]) -> None:
        self._steps = steps
        self.failure: ApiError | None = None

    async def sync_finalizer(self, config: QueueConfig) -> None:
        self._steps.append("sync_finalizer")
        if self.failure is not None:
            raise self.failure

    async def finalize(self, config: QueueConfig, *, known: object) -> None:
        self._steps.append("finalize")


class Case:
    def __init__(self, config: QueueConfig = CONFIG) -> None:
        self.dispatcher, self.client, self.gone = FakeDispatcher(), FakeClient(), 0
        self.many_finished = {config.namespace: 0}
        self.controller = QueueReconciler(
            config,
            Totals(),
            dispatcher=cast(Dispatcher, self.dispatcher),
            client=cast(ApiClient, self.client),
            links=lambda parameters: pytest.fail("no broker is to be looked for"),
            clock=lambda: 1e9,
            created=0.0,
            many_finished=lambda namespace: self.many_finished[namespace],
            condition_settings=ConditionSettings(operator_namespace="operators"),
            installation="default",
            on_declared=lambda: None,
            sinks=cast(QueueSinks, FakeSinks()),
            readers=StatisticsReaders(spawn=lambda work, name: pytest.fail("nothing is read")),
            sweeper=UserSweeper("default", lambda: None),
            on_deleted=self._on_deleted,
        )

    def connect(self) -> FakeSession:
        """Put a broker session in place that needs no broker."""
        session = FakeSession()
        self.finalizer = FakeFinalizer(session.steps)
        self.controller._broker = cast(Any, session)
        self.controller._finalizer = cast(Any, self.finalizer)
        return session

    async def write_status(self) -> None:
        controller = self.controller
        await controller._write_status(controller.config, controller._update_estimate())

    def busy(self) -> int:
        return self.controller._busy(self.controller.config, self.controller._update_estimate())

    def _on_deleted(self) -> None:
        self.gone += 1

    @property
    def status(self) -> dict[str, Any]:
        return self.client.statuses[-1]

    @property
    def ready(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status["conditions"][0]
        return found


async def test_tasks_of_missing_handlers_ask_for_one_worker() -> None:
    case = Case()
    case.connect()
    case.dispatcher.published, case.dispatcher.excess = 300, 299
    await case.controller._reconcile()
    decision = case.controller.pool.decision
    assert decision is not None
    assert (decision.load.backlog, decision.load.busy) == (1, 1)
    assert case.status["backlog"] == 300


async def test_status_write_reports_a_deleted_taskqueue() -> None:
    case = Case()
    case.client.status = ApiError(404, "NotFound", "no")
    await case.write_status()
    assert case.gone == 1


async def test_a_refused_status_is_not_taken_for_written() -> None:
    case = Case()
    case.client.status = ApiError(422, "Invalid", "no")
    await case.write_status()
    assert case.controller._written == {}
    case.client.status = None
    await case.write_status()
    assert case.controller._written


async def test_a_failing_secret_keeps_neither_pool_nor_status_from_their_turn() -> None:
    case = Case()
    case.client.secret = ApiError(500, "InternalError", "no")
    with pytest.raises(ApiError):
        await case.controller._reconcile()
    assert case.controller.pool.decision is not None
    assert case.controller._written


async def test_a_failing_finalizer_keeps_nothing_else_from_its_turn() -> None:
    case = Case()
    session = case.connect()
    case.finalizer.failure = ApiError(403, "Forbidden", "no")
    with pytest.raises(ApiError):
        await case.controller._reconcile()
    assert session.steps == [
        "sync_finalizer",
        "ensure_declared",
    ]  # before there is anything to remove
    assert case.ready["status"] == "True"


async def test_backlog_is_estimated_once_in_each_reconcile() -> None:
    case = Case()
    session = case.connect()
    await case.controller._reconcile()
    assert len(case.client.statuses) == 1
    assert session.estimates == 1


async def test_status_has_counts_only_while_they_are_known() -> None:
    case = Case()
    session = case.connect()
    session.ready, session.dead_letters = 5, 2
    case.dispatcher.waiting, case.dispatcher.published = 4, 3
    await case.write_status()
    names = ("backlog", "pending", "ready", "running", "deadLetters")
    assert [case.status[name] for name in names] == [9, 4, 5, 0, 2]
    session.declared = False
    await case.write_status()
    assert [case.status[name] for name in names] == [None, 4, None, None, None]


async def test_dead_letters_condition_names_the_operators_own_namespace() -> None:
    case = Case()
    case.connect().dead_letters = 2
    await case.write_status()
    (condition,) = (one for one in case.status["conditions"] if one["type"] == "DeadLetters")
    assert "kubectl exec -n operators deploy/taskqueue-operator -- " in condition["message"]


async def test_status_says_when_the_namespace_has_many_finished_tasks() -> None:
    case = Case()
    case.connect()
    case.many_finished["shop"] = 12345
    await case.write_status()
    conditions = {one["type"]: one for one in case.status["conditions"]}
    assert conditions["ManyFinishedTasks"]["status"] == "True"
    assert conditions["ManyFinishedTasks"]["message"].startswith("12345 finished Tasks")


async def test_an_ended_task_is_counted_in_totals_and_throughput() -> None:
    case = Case()
    case.connect()
    case.controller.on_task_ended(Phase.SUCCEEDED, 0.8)
    case.controller.on_task_ended(Phase.FAILED, None)
    await case.write_status()
    assert case.status["totals"] == {"succeeded": 1, "failed": 1, "cancelled": 0}
    assert (case.status["throughputPerMinute"], case.status["meanRunSeconds"]) == (2, 0.8)


async def test_an_idle_queue_writes_its_status_once() -> None:
    case = Case()
    case.connect()
    case.controller.on_task_ended(Phase.SUCCEEDED, 0.8)
    for _ in range(5):
        await case.write_status()
    assert len(case.client.statuses) == 1


@pytest.mark.parametrize(
    ("policy", "replicas"), [(StopPolicy.HOLD, 10), (StopPolicy.HOLD_AND_DRAIN, 3)]
)
async def test_a_drained_pool_follows_what_is_published(policy: StopPolicy, replicas: int) -> None:
    config = replace(
        CONFIG,
        stop_policy=policy,
        scaling=ScalingPolicy(draining=policy.drains, target=BacklogTarget(1)),
    )
    case = Case(config)
    case.connect()
    case.dispatcher.waiting, case.dispatcher.published = 90, 3
    await case.controller._reconcile()
    assert case.controller.pool.desired == replicas
    assert case.ready["reason"] == "Held"


async def test_a_drained_pool_keeps_a_worker_for_each_task_that_runs() -> None:
    case = Case(replace(CONFIG, concurrency=4, stop_policy=StopPolicy.HOLD_AND_DRAIN))
    session = case.connect()
    case.dispatcher.published, session.ready = 7, 1
    assert case.busy() == 6
    case.controller.config = replace(case.controller.config, stop_policy=StopPolicy.HOLD)
    assert case.busy() == 2


async def test_a_deleted_taskqueue_declares_nothing_and_sizes_nothing() -> None:
    case = Case()
    session = case.connect()
    case.dispatcher.waiting = 50
    case.controller.reconfigure(replace(CONFIG, deleting=True, delete_queues=True))
    session.steps.clear()
    await case.controller._reconcile()
    assert session.steps == ["close", "finalize"]
    assert case.controller.pool.decision is None
    assert (case.ready["status"], case.ready["reason"]) == ("False", "Deleting")


async def test_deletion_does_not_wait_for_a_status_write() -> None:
    case = Case(replace(CONFIG, deleting=True, delete_queues=True))
    session = case.connect()
    case.client.status = ApiError(500, "InternalError", "no")
    await case.controller._reconcile()
    assert session.steps == ["close", "finalize"]


async def test_the_last_status_is_not_overtaken_by_one_on_its_way() -> None:
    case = Case()
    merge, arrived, go_on = case.client.merge, asyncio.Event(), asyncio.Event()

    async def slow(path: str, body: Any) -> None:
        case.client.merge = merge  # type: ignore[method-assign]
        arrived.set()
        await go_on.wait()
        await merge(path, body)

    case.client.merge = slow  # type: ignore[method-assign]
    earlier = asyncio.create_task(case.controller._reconcile())
    await arrived.wait()
    case.controller.on_task_ended(Phase.SUCCEEDED, 1.0)
    last = asyncio.create_task(case.controller.write_last_status())
    await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.gather(earlier, last)
    assert [each["totals"]["succeeded"] for each in case.client.statuses] == [0, 1]
