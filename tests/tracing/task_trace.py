"""Runs the operator's engine in this process, and follows one Task through it.

The Task and its TaskQueue are those of ``manifests/samples/hello.yaml``.

Real: the engine with all its parts and loops (informers, API client, status updater, reconciler of
the TaskQueue, broker session and link, channel, publisher), the Lease, HTTP to the API server.

Not real: the API server (`tests.tracing.api_server`), RabbitMQ with the pika library below
`taskqueue.amqp.channel` (`tests.tracing.broker`), and the worker, whose outcome is encoded here.
The manager is not started, nor the probes and kopf with it; here as there it hands the engine the
Lease in a lambda, which is not recorded. The watch does not show the Task leaving when it has
ended.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import yaml
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import Publisher
from taskqueue.contract.names import WORK_EXCHANGE
from taskqueue.contract.outcome import AttemptEvent, EventKind, encode
from taskqueue.contract.work import WorkMessage, parse_work
from taskqueue.controller.engine import Engine
from taskqueue.controller.queues import broker_link
from taskqueue.controller.tasks.task_feed import TaskFeed
from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.lease import LeaderElector, LeaseLock
from taskqueue.kubernetes.status_updater import Written
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.kubernetes.taskqueue_codec import queue_path
from taskqueue.model.token import TokenKeys
from tests.tracing.api_server import ApiServer
from tests.tracing.broker import Broker
from tests.tracing.recorder import Leg, Recorder

TO_PUBLISH = "watch to publish"
TO_STATUS = "outcome to status"
TO_ACKNOWLEDGEMENT = "status to acknowledgement"

#: asyncio tasks of the engine that a Task passes, by name. It also passes callbacks. All others
#: serve a queue, a broker or everybody, and may have their turn at any moment.
_PASSED = frozenset({"feed of Tasks", "status writer", "status write"})
#: Called back when a broker has answered a method, which no Task waits for.
_CALLBACKS_BESIDE = frozenset({"Channel._call.<locals>.done"})
_SAMPLE = Path(__file__).parents[2] / "manifests" / "samples" / "hello.yaml"
_TOKENS = TokenKeys(current="k", keys={"k": b"secret"})
#: Modules that only define values, and names or conversions of values: they decide and do nothing.
VALUES = frozenset(
    {
        "contract/names.py",
        "controller/tasks/effects.py",
        "controller/tasks/events.py",
        "controller/tasks/tracked_task.py",
        "model/queue.py",
        "model/task.py",
        "timestamps.py",
    }
)
#: How long all of it may take.
_SECONDS = 30.0


@dataclass(frozen=True)
class TaskTrace:
    """The way of a Task.

    Attributes:
        to_publish: from the moment the watch's line is sent until `Publisher.publish` is entered.
        to_status: from the delivery of the outcome until the PATCH of the status is answered.
        to_acknowledgement: from there until the outcome is acknowledged: the completion event, and
            what others hear of the end.
        status: as the API server has it at the end.
    """

    to_publish: Leg
    to_status: Leg
    to_acknowledgement: Leg
    status: dict[str, Any]

    @property
    def legs(self) -> tuple[Leg, Leg, Leg]:
        """All parts in their order."""
        return (self.to_publish, self.to_status, self.to_acknowledgement)

    @property
    def files(self) -> tuple[str, ...]:
        """The files from watch to publish and from outcome to status, each once."""
        return tuple(dict.fromkeys(self.to_publish.files + self.to_status.files))


async def trace_task(*, meanwhile: Callable[[Engine], None] = lambda engine: None) -> TaskTrace:
    """Start the operator, create a Task, end it by an outcome, and return what was passed.

    Args:
        meanwhile: called at the beginning of the first two legs, to give others work as well.
    """
    manifests = {raw["kind"]: raw for raw in yaml.safe_load_all(_SAMPLE.read_text())}
    broker, api = Broker(), ApiServer()
    recorder = Recorder(
        is_beside=lambda name: name not in _PASSED, callbacks_beside=_CALLBACKS_BESIDE
    )
    queue, task = manifests["TaskQueue"], manifests["Task"]
    namespace, name = task["metadata"]["namespace"], task["metadata"]["name"]
    uri = base64.b64encode(b"amqp://user:password@127.0.0.1:5672/").decode()
    api.put(
        f"/api/v1/namespaces/{namespace}/secrets/rabbit",
        {"metadata": {"name": "rabbit"}, "data": {"uri": uri}},
    )
    api.put(queue_path((namespace, queue["metadata"]["name"])), queue)
    async with asyncio.timeout(_SECONDS), api.serve():
        with patch.object(broker_link, "connect", broker.connect):
            client = ApiClient(api.access)
            leadership = LeaderElector(LeaseLock(client, "operators", "operator"), "tracer")
            await leadership.acquire()
            feed = TaskFeed(api.access, random=Random(1))
            engine = Engine(
                api.access,
                _TOKENS,
                feed=feed,
                namespace="operators",
                leads=lambda: leadership.is_leader,
            )
            running = asyncio.create_task(engine.run())
            try:
                await _follow(
                    engine, api, broker, recorder, task, meanwhile=lambda: meanwhile(engine)
                )
            finally:
                recorder.stop()
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
                await feed.close()
                await client.close()
    status = api.objects[task_path(namespace, name)]["status"]
    to_publish, to_status, to_acknowledgement = recorder.legs
    return TaskTrace(to_publish, to_status, to_acknowledgement, status)


async def _follow(
    engine: Engine,
    api: ApiServer,
    broker: Broker,
    recorder: Recorder,
    task: dict[str, Any],
    *,
    meanwhile: Callable[[], None],
) -> None:
    namespace, name = task["metadata"]["namespace"], task["metadata"]["name"]
    dispatcher = engine.tasks.dispatcher((namespace, task["spec"]["queue"]))
    await api.watched.wait()
    await _until(lambda: dispatcher.publisher is not None)

    def on_created() -> None:
        recorder.start(TO_PUBLISH, until=Publisher.publish.__code__)
        meanwhile()

    await api.create_task(task_path(namespace, name), task, before_line=on_created)
    properties, body = await broker.work.get()
    message = parse_work(properties, body, exchange=WORK_EXCHANGE)
    if not isinstance(message, WorkMessage):
        raise TypeError(f"not the Task's message: {message}")
    await _until(lambda: not recorder.is_recording)
    await asyncio.sleep(0.1)  # its confirm has been read
    outcome = AttemptEvent(
        kind=EventKind.SUCCEEDED,
        namespace=message.namespace,
        queue=message.queue,
        task=message.task,
        uid=message.uid,
        token=message.token,
        attempt=message.attempt,
        epoch=message.epoch,
        worker="greetings-worker-1",
        seconds=0.1,
        result={"greeting": "Hello, Ada!", "attempt": 1},
    )
    key, encoded = outcome.routing_key, encode(outcome)
    acknowledged = asyncio.Event()

    def on_acknowledged(_: int) -> None:
        recorder.stop()
        acknowledged.set()

    broker.on_acknowledged = on_acknowledged
    recorder.start(TO_STATUS, until=Written.__init__.__code__, then=TO_ACKNOWLEDGEMENT)
    meanwhile()
    # As bytes arrive: in no asyncio task.
    asyncio.get_running_loop().call_soon(broker.deliver, key, encoded, BasicProperties())
    await acknowledged.wait()


async def _until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  (conditions of any kind, not events)
        await asyncio.sleep(0.01)
