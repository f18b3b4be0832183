"""A worker loses its way to the broker while it runs an attempt, and another one is there.

The broker delivers the message to the other worker as soon as it has lost the connection of the
first. The first runs on; it comes back, or stays away for longer than the operator waits for it.
The workers run beside the test, the first one behind a relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taskqueue.amqp.parameters import BrokerParameters
from tests.conftest import RabbitMQ
from tests.e2e.api import Body
from tests.e2e.harness import FINISHED, Harness
from tests.faults.relay import Relay, relay_to
from tests.integration.worker.harness import Gate
from tests.integration.worker.process import PATIENCE, WorkerProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]

#: Less than it takes until the operator gives a worker up. The broker gives up a silent client
#: after some 15 s, and one whose connection is reset at once.
_CUT_SECONDS, _SWALLOWED_SECONDS = 5.0, 20.0
_LAST: Body = {"maxDeliveries": 1, "retry": {"maxAttempts": 1}}


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(workers=None)
    harness.ready()


@pytest.fixture(scope="module")
def broker(rabbitmq: RabbitMQ) -> BrokerParameters:
    return BrokerParameters(
        host=rabbitmq.host,
        port=rabbitmq.port,
        username=rabbitmq.username,
        password=rabbitmq.password,
    )


@dataclass
class Pair:
    """A worker behind a relay, which runs an attempt, and another one beside it."""

    harness: Harness
    relay: Relay
    gate: Gate
    first: WorkerProcess
    second: WorkerProcess

    async def given_back(self) -> None:
        """Wait until the second worker was given the message, and has given it back."""
        await self.second.logged(
            "task.released", where=lambda line: "delivered again" in line["reason"]
        )

    async def finished(self, name: str) -> Body:
        """Open the gate, and return the one final status."""
        self.gate.open()
        status: Body = await asyncio.to_thread(self.harness.finished, name, seconds=PATIENCE)
        versions = self.harness.tasks.versions(name)
        ends = [one["status"] for one in versions if one["status"]["phase"] in FINISHED]
        assert ends == [status]
        return status


async def start(broker: BrokerParameters, harness: Harness, pod: str) -> WorkerProcess:
    environment = {"TASKQUEUE_NAMESPACE": harness.namespace, "POD_NAME": pod}
    worker = await WorkerProcess.start(broker, slots=1, environment=environment)
    await worker.logged("consumer.registered")
    return worker


@asynccontextmanager
async def running(
    harness: Harness, broker: BrokerParameters, folder: Path, name: str, **spec: Any
) -> AsyncIterator[Pair]:
    """Have the first of two workers run the only attempt."""
    gate = Gate(folder / "runs", folder / "gate")
    async with AsyncExitStack() as stack:
        relay, behind = await stack.enter_async_context(relay_to(broker))
        first = await start(behind, harness, "first")
        stack.push_async_callback(first.kill)
        await asyncio.to_thread(harness.task, name, "hold", payload=gate.payload, **spec)
        await gate.wait_until_started()
        second = await start(broker, harness, "second")
        stack.push_async_callback(second.kill)
        await asyncio.to_thread(harness.phase, name, "Running")
        stack.callback(gate.open)
        yield Pair(harness, relay, gate, first, second)


@pytest.mark.parametrize("how", ["cut", "swallowed"])
async def test_a_worker_that_comes_back_keeps_its_attempt(
    harness: Harness, broker: BrokerParameters, tmp_path: Path, how: str
) -> None:
    """As its last delivery: if this one counted, it would have failed."""
    name = f"comes-back-{how}"
    async with running(harness, broker, tmp_path, name, maxDeliveries=1) as pair:
        if how == "cut":
            with pair.relay.down():
                await asyncio.sleep(_CUT_SECONDS)
        else:
            with pair.relay.black_hole():
                await asyncio.sleep(_SWALLOWED_SECONDS)
        await pair.given_back()
        await pair.first.logged("consumer.registered", times=2)
        status = await pair.finished(name)
    assert (status["phase"], status["attempts"], status["worker"]) == ("Succeeded", 1, "first")
    assert [one["worker"] for one in status["history"]] == ["first"]
    assert len(set(pair.gate.pids)) == 1


async def test_an_outcome_while_it_is_cut_off_is_taken_once(
    harness: Harness, broker: BrokerParameters, tmp_path: Path
) -> None:
    async with running(harness, broker, tmp_path, "ends-meanwhile", maxDeliveries=1) as pair:
        with pair.relay.down():
            await pair.given_back()
            pair.gate.open()
            await asyncio.sleep(_CUT_SECONDS)
        status = await pair.finished("ends-meanwhile")
    assert (status["phase"], status["attempts"], status["worker"]) == ("Succeeded", 1, "first")
    assert len(set(pair.gate.pids)) == 1


async def test_a_worker_that_stays_away_is_lost_and_the_other_runs_the_attempt(
    harness: Harness, broker: BrokerParameters, tmp_path: Path
) -> None:
    async with running(harness, broker, tmp_path, "stays-away", maxDeliveries=2) as pair:
        with pair.relay.down():
            await pair.given_back()
            assert len(pair.gate.pids) == 1
            await pair.gate.wait_until_started(2)
            status = await pair.finished("stays-away")
        assert (status["phase"], status["attempts"], status["worker"]) == ("Succeeded", 1, "second")
        # What the first one reports then changes nothing.
        await pair.first.logged("consumer.registered", times=2)
        await asyncio.to_thread(harness.task, "after", "noop")
        assert (await pair.finished("after"))["phase"] == "Succeeded"
    assert [one["worker"] for one in status["history"]] == ["second"]


async def test_the_last_delivery_of_a_worker_that_stays_away_ends_the_attempt(
    harness: Harness, broker: BrokerParameters, tmp_path: Path
) -> None:
    async with running(harness, broker, tmp_path, "was-the-last", **_LAST) as pair:
        with pair.relay.down():
            await pair.given_back()
            status = await asyncio.to_thread(harness.finished, "was-the-last", seconds=PATIENCE)
    assert (status["phase"], status["reason"]) == ("Failed", "WorkerLost")
    assert len(pair.gate.pids) == 1
