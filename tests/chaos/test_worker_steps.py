"""A worker process is killed at each step between delivery and acknowledgement.

The workers run beside the test, through a relay that holds the frames of the next step back;
the operator and the Tasks are those of the cluster. Whatever the step: the next worker gets the
message, and the Task ends once, as if nothing had happened. The summary shows what ran twice.
"""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.names import work_queue
from tests.chaos.frames import Frame, Hold, Way, relay_to
from tests.chaos.run_counter import RunCounter
from tests.conftest import RabbitMQ
from tests.e2e.api import Body
from tests.e2e.harness import FINISHED, TEMPLATE, Harness
from tests.integration.worker.harness import Gate
from tests.integration.worker.process import PATIENCE, WorkerProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]

CONSUME, PUBLISH, DELIVER, ACK = (60, 20), (60, 40), (60, 60), (60, 80)


class Bench:
    """Worker processes of this machine, for a TaskQueue that has none in the cluster."""

    def __init__(self, harness: Harness, rabbitmq: RabbitMQ, folder: Path) -> None:
        self.harness = harness
        self.broker = BrokerParameters(
            host=rabbitmq.host,
            port=rabbitmq.port,
            username=rabbitmq.username,
            password=rabbitmq.password,
        )
        self.gate = Gate(folder / "runs", folder / "gate")
        self._workers: list[WorkerProcess] = []

    async def worker(self, broker: BrokerParameters | None = None) -> WorkerProcess:
        environment = {
            "TASKQUEUE_NAMESPACE": self.harness.namespace,
            "POD_NAME": f"local-{len(self._workers)}",
        }
        worker = await WorkerProcess.start(broker or self.broker, slots=1, environment=environment)
        self._workers.append(worker)
        await worker.logged("consumer.registered")
        return worker

    async def task(self, name: str, handler: str = "hold", **spec: Any) -> None:
        await asyncio.to_thread(self.harness.task, name, handler, payload=self.gate.payload, **spec)

    async def finished(self, name: str) -> Body:
        return await asyncio.to_thread(self.harness.finished, name, seconds=PATIENCE)

    async def ready(self, queue: str) -> int:
        """Count the messages of a TaskQueue that no worker has."""
        connection = await connect(self.broker, name="bench")
        channel = await connection.channel()
        count = await channel.declare_queue(work_queue(self.harness.namespace, queue), passive=True)
        await connection.close()
        return count

    async def end(self) -> None:
        self.gate.open()
        for worker in self._workers:
            await worker.kill()


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(workers=None, taskDefaults={"maxDeliveries": 3})
    harness.ready()


@pytest.fixture
async def bench(harness: Harness, rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(harness, rabbitmq, tmp_path)
    yield bench
    await bench.end()


def before_the_start() -> Hold:
    """The work message is on its way from the broker, which counts it as delivered."""
    return lambda frame: (
        (frame.way, frame.method) == (Way.TO_WORKER, DELIVER)
        and b"taskqueue.work" in frame.arguments
    )


def before_the_outcome_leaves() -> Hold:
    return lambda frame: (
        (frame.way, frame.method) == (Way.TO_BROKER, PUBLISH)
        and b"task.succeeded" in frame.arguments
    )


def before_the_confirm() -> Hold:
    """The broker has the outcome, and the worker does not know it."""
    published: set[tuple[int, int]] = set()

    def hold(frame: Frame) -> bool:
        where = frame.connection, frame.channel
        if frame.method == PUBLISH and b"task.succeeded" in frame.arguments:
            published.add(where)
        return frame.way is Way.TO_WORKER and frame.method == ACK and where in published

    return hold


def before_the_acknowledgement() -> Hold:
    """The worker knows that the broker has the outcome, and acknowledges the message."""
    consuming: set[tuple[int, int]] = set()

    def hold(frame: Frame) -> bool:
        where = frame.connection, frame.channel
        if frame.method == CONSUME and b"taskqueue.e2e-" in frame.arguments:
            consuming.add(where)
        return frame.way is Way.TO_BROKER and frame.method == ACK and where in consuming

    return hold


#: Each with the number of runs there are before the kill, and in the end. What the operator knows
#: the end of does not run again: the next worker gives it back.
STEPS: list[tuple[Callable[[], Hold], int, int]] = [
    (before_the_start, 0, 1),
    (before_the_outcome_leaves, 1, 2),
    (before_the_confirm, 1, 1),
    (before_the_acknowledgement, 1, 1),
]


@pytest.mark.parametrize(("step", "before", "runs"), STEPS)
async def test_killed(
    bench: Bench, summary_lines: list[str], step: Callable[[], Hold], before: int, runs: int
) -> None:
    name = name_of(step)
    bench.gate.open()
    async with relay_to(bench.broker, step()) as (relay, parameters):
        worker = await bench.worker(parameters)
        await bench.task(name)
        async with asyncio.timeout(PATIENCE):
            await relay.held.wait()
        assert len(bench.gate.pids) == before
        await worker.kill()
    worker = await bench.worker()
    await worker.logged("task.released")
    await bench.gate.wait_until_started(runs)
    await assert_it_ended_once(bench, name)
    await assert_nothing_is_left(bench, worker)
    assert len(bench.gate.pids) == runs
    summary_lines.append(f"ran {runs - 1} times more than needed")


async def test_killed_with_the_whole_pod(
    bench: Bench, node_address: str, summary_lines: list[str]
) -> None:
    """Pods reach the relay at the address by which we reach their node."""
    with socket.create_connection((node_address, bench.broker.port)) as probe:
        ours = probe.getsockname()[0]
    await asyncio.gather(*(kill_pod(bench, ours, *step) for step in STEPS))
    summary_lines += [
        f"{name_of(step)}: ran {runs - 1} times more than needed" for step, _, runs in STEPS
    ]


async def kill_pod(
    bench: Bench, ours: str, step: Callable[[], Hold], before: int, runs: int
) -> None:
    """Kill the only pod of a TaskQueue at this step; the one that replaces it does the rest."""
    harness, name = bench.harness, f"pod-{name_of(step)}"
    async with relay_to(bench.broker, step(), address=ours) as (relay, parameters):
        template = copy.deepcopy(TEMPLATE)
        template["spec"]["containers"][0]["env"] = [
            {"name": "TASKQUEUE_BROKER_HOST", "value": parameters.host},
            {"name": "TASKQUEUE_BROKER_PORT", "value": str(parameters.port)},
        ]
        harness.queue(
            name,
            scaling={"minReplicas": 1, "maxReplicas": 1},
            workers={"concurrency": 1, "template": template},
        )
        run_counter = RunCounter(harness, name)
        await asyncio.to_thread(harness.available, 1, name)
        uid = await asyncio.to_thread(submit, harness, name)
        async with asyncio.timeout(PATIENCE):
            await relay.held.wait()
        seen = f"{before} runs of {name} before the kill"
        await asyncio.to_thread(harness.until, lambda: run_counter.runs[uid] >= before, what=seen)
        (pod,) = harness.pods(name)
        await asyncio.to_thread(harness.kill, pod["metadata"]["name"])
        relay.cut()
        await assert_it_ended_once(bench, name)
        seen = f"{runs} runs of {name}"
        await asyncio.to_thread(harness.until, lambda: run_counter.runs[uid] >= runs, what=seen)
        harness.change_queue(name, scaling={"minReplicas": 0})
        await asyncio.to_thread(
            harness.until, lambda: not harness.all_pods(name), what=f"without {name}"
        )
        assert await bench.ready(name) == 0
        run_counter.close()
        assert run_counter.runs[uid] == runs, name


def submit(harness: Harness, name: str) -> str:
    """Create a short Task of the TaskQueue of the same name; return its uid."""
    harness.task(name, "nap", queue=name, payload={"seconds": 0.1})
    uid: str = harness.api.get(harness.path("tasks", name))["metadata"]["uid"]
    return uid


def name_of(step: Callable[[], Hold]) -> str:
    return step.__name__.replace("_", "-")


async def test_killed_while_it_runs(bench: Bench, summary_lines: list[str]) -> None:
    worker = await bench.worker()
    await bench.task("while-it-runs")
    await bench.gate.wait_until_started()
    await worker.kill()
    await until_ended(bench.gate.pids[0])
    worker = await bench.worker()
    await bench.gate.wait_until_started(2)
    bench.gate.open()
    await assert_it_ended_once(bench, "while-it-runs")
    await assert_nothing_is_left(bench, worker)
    assert len(bench.gate.pids) == 2
    summary_lines.append("ran 1 times more than needed, the first not to its end")


async def test_a_killed_child_is_a_failed_attempt(bench: Bench, summary_lines: list[str]) -> None:
    worker = await bench.worker()
    await bench.task("child", retry={"maxAttempts": 2})
    await bench.gate.wait_until_started()
    (child,) = bench.gate.pids
    assert child != worker.pid
    os.kill(child, signal.SIGKILL)
    await bench.gate.wait_until_started(2)
    bench.gate.open()
    status = await bench.finished("child")
    assert (status["phase"], status["attempts"]) == ("Succeeded", 2)
    failed = status["history"][0]
    assert (failed["outcome"], failed["reason"]) == ("Failed", "ChildDied")
    assert "SIGKILL" in failed["message"]
    assert len(bench.gate.pids) == 2
    await assert_nothing_is_left(bench, worker)
    summary_lines.append("ran once an attempt")


async def assert_it_ended_once(bench: Bench, name: str) -> None:
    """Fail unless the Task succeeded at its first attempt, and had one final status."""
    status = await bench.finished(name)
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
    assert [one["outcome"] for one in status["history"]] == ["Succeeded"]
    versions = bench.harness.tasks.versions(name)
    ends = [one["status"] for one in versions if one["status"]["phase"] in FINISHED]
    assert ends == [status]


async def assert_nothing_is_left(bench: Bench, worker: WorkerProcess) -> None:
    """Fail unless the worker goes in order, and leaves no message behind."""
    worker.terminate()
    assert await worker.ended() == 0
    assert await bench.ready("q") == 0


async def until_ended(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    async with asyncio.timeout(PATIENCE):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240 - nobody tells
            await asyncio.sleep(0.01)
