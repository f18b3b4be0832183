"""The parts that serve Tasks, wired to a fake publisher, status writer and API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import orjson
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.command import decode as decode_order
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import (
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
)
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, encode
from taskqueue.contract.work import WorkMessage, parse_work
from taskqueue.controller.tasks.dispatcher import Dispatcher, do_nothing
from taskqueue.controller.tasks.lifecycle import PHASES
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.kubernetes.client import TABLE, ApiClient, ApiError
from taskqueue.kubernetes.status_updater import OnResult, StatusUpdater, WriteRefused, Written
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.limits import PAYLOAD_CACHE_BYTES
from taskqueue.model.flow import ConcurrencyPolicy, FlowPolicy
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.task import Policy, RetryBackoff
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import to_rfc3339
from tests.unit.kubernetes.fake_api import as_table

KEY = ("shop", "q")
EPOCH = 1_700_000_000.0
TOKENS = TokenKeys(current="k", keys={"k": b"secret"})


#: The default result of `TaskHarness.event`.
MISSING: Any = object()


def now() -> float:
    return EPOCH + asyncio.get_running_loop().time()


@dataclass(frozen=True)
class Publish:
    """A work message handed to the publisher."""

    message: WorkMessage
    settle: OnSettled


class FakePublisher:
    """Records what is published; the test settles it. Events and commands are confirmed at once."""

    def __init__(self) -> None:
        self.published: list[Publish] = []
        self.commands: list[WorkerCommand] = []
        self.events: list[dict[str, Any]] = []
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
        if exchange == WORK_EXCHANGE:
            message = parse_work(properties, body, exchange=WORK_EXCHANGE)
            assert isinstance(message, WorkMessage)
            assert key == "shop.q"
            self.published.append(Publish(message, on_settled))
            return
        if (exchange, key) == ("", CONTROL_STREAM):
            self.commands.append(decode_order(body))
        else:
            assert exchange == EVENTS_EXCHANGE
            self.events.append(orjson.loads(body))
        asyncio.get_running_loop().call_soon(on_settled, Settled.CONFIRMED, "")

    @property
    def names(self) -> list[str]:
        return [one.message.task for one in self.published]

    def settle(self, verdict: Settled, text: str = "") -> None:
        """Settle everything published since the last call."""
        published, self.published = self.published, []
        for one in published:
            one.settle(verdict, text)


@dataclass
class Write:
    """A status on its way to the API server."""

    path: str
    status: dict[str, Any]
    urgent: bool
    on_result: OnResult
    at: float
    uid: str = ""

    def succeed(
        self, generation: int = 1, version: int = 101, metadata: dict[str, Any] | None = None
    ) -> None:
        self.on_result(Written(generation, version, metadata or {}))

    def refuse(self, status: int, message: str = "no") -> None:
        self.on_result(WriteRefused(status, message))


class FakeWriter:
    """Records writes; the test decides their result."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.clogged: set[str] = set()

    def put(self, path: str, body: bytes, on_result: OnResult, *, urgent: bool = False) -> None:
        same, *changes = orjson.loads(body)
        assert (same["op"], same["path"]) == ("test", "/metadata/uid")
        status = {one["path"].removeprefix("/status").strip("/"): one["value"] for one in changes}
        at = asyncio.get_running_loop().time()
        whole = status.get("", status)
        self.writes.append(Write(path, whole, urgent, on_result, at, same["value"]))

    @property
    def phases(self) -> list[str]:
        return [write.status["phase"] for write in self.writes]


class FakeChannel:
    """Records acknowledgements."""

    def __init__(self) -> None:
        self.acked: list[int] = []
        self.is_open = True

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        assert not multiple
        self.acked.append(delivery_tag)


class FakeApi:
    """Serves objects by path."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        #: What of it was asked for as a row of a Table.
        self.rows: list[str] = []

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        self.asked.append(path)
        await asyncio.sleep(0)
        if path not in self.objects:
            raise ApiError(404, "NotFound", f"{path} not found")
        return self.objects[path]

    async def request(
        self, method: str, path: str, *, params: Mapping[str, str], accept: str, levels: int
    ) -> dict[str, Any]:
        assert (method, accept) == ("GET", TABLE)
        self.rows.append(path)
        return as_table([await self.get(path)])


class _States(dict[str, TrackedTask]):
    """The states by uid, as the runner keeps them; remembers the last one of each Task.

    Phases follow each other only as `PHASES` says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, TrackedTask] = {}

    def __setitem__(self, uid: str, tracked: TrackedTask) -> None:
        if uid in self:
            before, phase = self[uid].status.phase, tracked.status.phase
            assert phase is before or phase in PHASES[before], f"{before} is followed by {phase}"
        super().__setitem__(uid, tracked)
        self.latest[uid] = tracked


class _Latest:
    """Shows the latest state of one Task, also once it is tracked no more."""

    def __init__(self, states: _States, uid: str) -> None:
        self._states = states
        self._uid = uid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._states.latest[self._uid], name)


class TaskHarness:
    """The parts that serve Tasks, wired as in the operator, of one TaskQueue ``shop/q``.

    The test takes the part of informers, TaskQueues and pools.
    """

    def __init__(
        self,
        *,
        max_published: int = 1000,
        per_key: int = 1,
        keys: ConcurrencyPolicy | None = None,
        flow: FlowPolicy | None = None,
        payload_budget: int = PAYLOAD_CACHE_BYTES,
        **policy: Any,
    ) -> None:
        self.publisher = FakePublisher()
        self.writer = FakeWriter()
        self.channel = FakeChannel()
        self.api = FakeApi()
        self.given_up: list[tuple[Delivery, str]] = []
        self.recorded: list[str] = []
        self.completed: list[str] = []
        self.missed: list[tuple[QueueKey, bool]] = []
        self.refused: list[tuple[str, str]] = []
        self.heartbeats: list[Heartbeat] = []
        self.proven: list[bool] = []
        self.direct_ends: list[tuple[QueueKey, str]] = []
        #: The one that the TaskQueue uses.
        self.broker = object()
        #: The TaskQueues that the operator serves.
        self.queues = {KEY}
        self.missing = 0
        self.on_owed: Callable[[], None] = do_nothing
        #: Exceptions of background work.
        self.problems: list[BaseException] = []
        self.leads = True
        self.synced = True
        #: By how much the wall clock was set since the start.
        self.step = 0.0
        self._shown: dict[tuple[str, str], str] = {}
        self._tags = itertools.count(1)
        self._background: set[asyncio.Task[None]] = set()
        self.config = QueueConfig(
            namespace="shop",
            name="q",
            uid="queue",
            generation=1,
            connection_secret="rabbit",
            max_published=max_published,
            keys=keys or ConcurrencyPolicy(per_key=per_key),
            flow=flow,
            policy=Policy(**{"backoff": RetryBackoff(5.0, 1.0, 60.0, 0.0), **policy}),
        )
        self.tasks = TaskController(
            client=cast(ApiClient, self.api),
            updater=cast(StatusUpdater, self.writer),
            tokens=TOKENS,
            listener=self,
            uid_of=self._shown.get,
            synced=lambda: self.synced,
            leads=lambda: self.leads,
            random=Random(0),
            spawn=self._spawn,
            clock=lambda: now() + self.step,
            payload_budget=payload_budget,
        )
        self.states = _States()
        self.tasks._runner.tasks = self.states
        self.dispatcher.config = self.config
        self.dispatcher.on_missing = self._on_queue_missing

    @property
    def dispatcher(self) -> Dispatcher:
        return self.tasks.dispatcher(KEY)

    @property
    def entries(self) -> Mapping[str, TrackedTask]:
        return self.tasks.tasks

    def open(self) -> None:
        self.dispatcher.open(cast(Publisher, self.publisher))

    # The engine's part.

    def _on_queue_missing(self) -> None:
        self.missing += 1

    def has_queue(self, key: QueueKey) -> bool:
        return key in self.queues

    def uses_broker(self, key: QueueKey, broker: object) -> bool:
        return broker is self.broker

    def on_direct_end(self, key: QueueKey, exchange: str) -> None:
        self.direct_ends.append((key, exchange))

    def on_heartbeat(self, heartbeat: Heartbeat, *, proven: bool) -> None:
        self.proven.append(proven)
        self.heartbeats.append(heartbeat)

    def on_task_ended(self, entry: TrackedTask) -> None:
        self.recorded.append(entry.task.name)

    def on_status_refused(self, entry: TrackedTask, why: str) -> None:
        self.refused.append((entry.task.name, why))

    def on_completion_published(self, entry: TrackedTask) -> None:
        self.completed.append(entry.task.name)

    def on_end_missed(self, key: QueueKey, uid: str, *, dropped: bool) -> None:
        self.missed.append((key, dropped))

    def on_commands_owed(self) -> None:
        self.on_owed()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self.problems.append(problem)

    # The informer's part.

    def add(self, name: str, *, created: float = 0.0, **spec: Any) -> TrackedTask:
        """Add or change a Task as the informer would; return it."""
        return self.show(raw_task(name, created=created, **spec))

    def show(self, raw: dict[str, Any]) -> TrackedTask:
        metadata = raw["metadata"]
        held = self.entries.get(metadata["uid"])
        if held is not None:
            metadata["generation"] = held.task.generation + 1
        self._shown[metadata["namespace"], metadata["name"]] = metadata["uid"]
        self.tasks.on_upserted(raw)
        return self.latest(metadata["uid"])

    def latest(self, uid: str) -> TrackedTask:
        """Return what shows the latest state of a Task."""
        return cast(TrackedTask, _Latest(self.states, uid))

    def token(self, entry: TrackedTask) -> str:
        return TOKENS.sign(entry.uid, entry.status.current_attempt, entry.status.epoch)

    def store(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Have the API server hold a Task, as it does when its payload is read again."""
        metadata = raw["metadata"]
        self.api.objects[task_path(metadata["namespace"], metadata["name"])] = raw
        return raw

    async def delete(self, entry: TrackedTask, metadata: dict[str, Any] | None = None) -> None:
        """Delete a Task as the informer would report it."""
        key = (entry.task.namespace, entry.task.name)
        self._shown.pop(key)
        self.tasks.on_deleted(key, entry.task.uid, metadata)
        await turn()

    async def published(self, name: str = "t", **spec: Any) -> TrackedTask:
        """Return a Task whose first attempt the broker has confirmed."""
        entry = self.add(name, **spec)
        self.open()
        await turn()
        self.publisher.settle(Settled.CONFIRMED)
        return entry

    def event(
        self,
        entry: TrackedTask,
        kind: EventKind,
        *,
        attempt: int = 1,
        epoch: int = 0,
        token: str | None = None,
        error: EventError | None = None,
        uid: str | None = None,
        result: Any = MISSING,
        worker: str = "pod-1",
        checkpoint: dict[str, Any] | None = None,
        deliveries: int = 0,
    ) -> int:
        """Deliver an attempt event of a worker; return its delivery tag."""
        uid = uid or entry.task.uid
        outcome = {"a": None} if kind is EventKind.SUCCEEDED else None
        if result is not MISSING:
            outcome = result
        event = AttemptEvent(
            kind=kind,
            namespace="shop",
            queue="q",
            task=entry.task.name,
            uid=uid,
            token=TOKENS.sign(uid, attempt, epoch) if token is None else token,
            attempt=attempt,
            epoch=epoch,
            worker=worker,
            checkpoint=checkpoint,
            deliveries=deliveries,
            seconds=0.1,
            result=outcome,
            error=error,
        )
        return self.message(encode(event))

    def failed(self, entry: TrackedTask, *, attempt: int = 1) -> int:
        error = EventError(type="Boom", message="it broke")
        return self.event(entry, EventKind.FAILED, attempt=attempt, error=error)

    def message(
        self,
        body: bytes,
        *,
        exchange: str = OUTCOMES_EXCHANGE,
        routing_key: str = "shop.q.task.succeeded",
        properties: BasicProperties | None = None,
        problem: str = "",
        broker: object | None = None,
    ) -> int:
        tag = next(self._tags)
        delivery = Delivery(
            channel=cast(Channel, self.channel),
            delivery_tag=tag,
            redelivered=False,
            exchange=exchange,
            routing_key=routing_key,
            properties=properties or BasicProperties(),
            body=body,
            problem=problem,
        )
        self.tasks.inbox.on_delivery(delivery, _Source(self, broker or self.broker))
        return tag

    def dead_letter(self, message: WorkMessage, **headers: Any) -> int:
        """Deliver a work message as a dead letter."""
        properties = message.properties()
        properties.headers = {**(properties.headers or {}), **headers}
        return self.message(message.body, exchange=DEAD_EXCHANGE, properties=properties)


@dataclass(frozen=True)
class _Source:
    """The broker connection the test's messages come from."""

    harness: TaskHarness

    broker: object

    @property
    def publisher(self) -> Publisher | None:
        return cast(Publisher, self.harness.publisher)

    def dead_letter_delivery(self, delivery: Delivery, reason: str) -> None:
        self.harness.given_up.append((delivery, reason))


def raw_task(
    name: str = "t",
    *,
    created: float = 0.0,
    generation: int = 1,
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a Task as the API server has it; ``created`` in seconds since `EPOCH`."""
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": f"uid-{name}",
            "generation": generation,
            "resourceVersion": "100",
            "creationTimestamp": to_rfc3339(EPOCH + created),
        },
        "spec": {"queue": "q", "handler": "resize", "payload": {}, **spec},
        "status": status or {"phase": "Pending", "observedGeneration": -1},
    }


async def turn() -> None:
    """Run what is due now."""
    for _ in range(3):
        await asyncio.sleep(0)
