"""One TaskBatch, served as in the operator, with a broker, workers and an API server around it.

The operator may be restarted at any moment: what the API server and the broker have is kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, encode
from taskqueue.contract.work import WorkMessage
from taskqueue.controller.batches import index_set
from taskqueue.controller.batches.batch_controller import BatchController
from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import TaskHarness, now, turn
from tests.unit.controller.virtual_time import VirtualLoop

T = TypeVar("T")

TERMINAL = ("Succeeded", "Failed", "Cancelled")


class Served:
    """One life of the operator."""

    def __init__(self, slots: int, policy: Mapping[str, Any]) -> None:
        self.harness = TaskHarness(**policy)
        self.harness.dispatcher.slots = slots
        self.ended: list[str] = []
        self.batches = BatchController(
            cast(ApiClient, self.harness.api),
            cast(StatusUpdater, self.harness.writer),
            self.harness.tasks,
            clock=now,
            on_ended=lambda batch, state: self.ended.append(f"{batch.name} {state.phase}"),
        )
        self.running = asyncio.get_running_loop().create_task(self.batches.run())
        self.bodies: dict[int, bytes] = {}


class BatchWorld:
    """See the module.

    Args:
        spec: of the batch.
        fails: which items fail, always.
        slots: of the workers.
        policy: of the TaskQueue.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        fails: Callable[[int], bool] = lambda _: False,
        slots: int = 2,
        **policy: Any,
    ) -> None:
        self.loop = VirtualLoop(start=100.0)
        self.fails = fails
        self.slots = slots
        self.policy = policy or {"max_attempts": 1}
        self.object: dict[str, Any] = {
            "metadata": {
                "namespace": "shop",
                "name": "b",
                "uid": "batch",
                "generation": 1,
                "resourceVersion": "100",
                "creationTimestamp": to_rfc3339(self.loop.do(now)),
            },
            "spec": {"queue": "q", "template": {"spec": {"handler": "resize"}}, **spec},
            "status": {"phase": "Pending", "observedGeneration": -1},
        }
        #: At the broker, and what is not acknowledged of the inbox.
        self.queue: list[WorkMessage] = []
        self.inbox: list[bytes] = []
        self.runs: Counter[int] = Counter()
        self.payloads: dict[int, bytes] = {}
        self.writes: list[dict[str, Any]] = []
        self.is_deleted = False
        self.config_maps: dict[str, dict[str, Any]] = {}
        self.operator = self.loop.do(self._start)

    # What is on record.

    @property
    def status(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.object["status"])

    @property
    def phase(self) -> str:
        return str(self.status["phase"])

    def recorded(self) -> set[int]:
        """Return the items that have ended, by what the API server has."""
        begun = self.status.get("begun", 0)
        still_open = index_set.decode(self.status.get("openItems", ""), begun)
        return set(range(begun)) - set(still_open)

    # The operator.

    def _start(self) -> Served:
        served = Served(self.slots, self.policy)
        served.harness.api.objects |= self.config_maps
        return served

    def show(self) -> None:
        """Show the batch to the operator."""
        self.do(lambda: self.operator.batches.on_upserted(self.object))

    def lead(self) -> None:
        """Have the operator list the batch, read its inbox, and publish."""

        def work() -> None:
            if not self.is_deleted:
                self.operator.batches.on_upserted(self.object)

        self.do(work)
        self.loop.run_until_complete(self.operator.batches.load())
        self.operator.batches.is_taking_over = False
        waiting, self.inbox = self.inbox, []
        for body in waiting:
            self.do(lambda body=body: self.deliver(body))  # type: ignore[misc]
        self.do(self.operator.harness.open)

    def restart(self, *, last_first: bool = False) -> None:
        """Kill the operator, and start another; the inbox may be in any order."""
        self.inbox = self._unacknowledged()
        if last_first:
            self.inbox.reverse()

        def kill() -> None:
            self.operator.running.cancel()
            self.operator.harness.dispatcher.close()

        self.loop.do(kill)
        self.operator = self.loop.do(self._start)
        self.lead()

    def _unacknowledged(self) -> list[bytes]:
        acked = set(self.operator.harness.channel.acked)
        return [body for tag, body in self.operator.bodies.items() if tag not in acked]

    def do(self, what: Callable[[], T]) -> T:
        """Do something, then let the operator react; messages reach the broker."""

        async def work() -> T:
            result = what()
            for _ in range(4):
                await turn()
            return result

        result = self.loop.run_until_complete(work())
        assert not self.loop.problems, self.loop.problems
        self._take_published()
        return result

    def _take_published(self) -> None:
        publisher = self.operator.harness.publisher
        for one in publisher.published:
            index = int(one.message.uid.rpartition("/")[2])
            assert index not in self.recorded(), "an item is published that has ended on record"
            assert self.phase not in TERMINAL
            self.payloads[index] = one.message.body
            self.queue.append(one.message)
        self.loop.do(lambda: publisher.settle(Settled.CONFIRMED))

    def pass_time(self, seconds: float) -> None:
        self.loop.pass_time(seconds)
        self.do(lambda: None)

    # Users.

    def edit(self, **spec: Any) -> None:
        """Change the spec."""
        metadata = {**self.object["metadata"]}
        metadata["generation"] += 1
        self.object = {
            **self.object,
            "metadata": metadata,
            "spec": {**self.object["spec"], **spec},
        }
        self.show()

    def delete(self) -> None:
        """Delete the object."""
        self.is_deleted = True
        self.do(lambda: self.operator.batches.on_deleted(("shop", "b"), "batch"))

    # The API server.

    def write(self) -> None:
        """Have all writes succeed that are on their way, as far as the rules let them."""
        writes, self.operator.harness.writer.writes = self.operator.harness.writer.writes, []
        for one in writes:
            if self.is_deleted:
                self.do(lambda one=one: one.refuse(404))  # type: ignore[misc]
                continue
            self._check(one.status)
            self.writes.append(one.status)
            self.object = {**self.object, "status": one.status}
            generation = self.object["metadata"]["generation"]
            self.do(lambda one=one, g=generation: one.succeed(generation=g))  # type: ignore[misc]

    def _check(self, status: dict[str, Any]) -> None:
        before = self.status
        if before["phase"] in TERMINAL:
            assert status["phase"] == before["phase"]
        for name in ("epoch", "begun"):
            assert status.get(name, 0) >= before.get(name, 0), name
        ended = [one.get("succeeded", 0) + one.get("failed", 0) for one in (before, status)]
        assert ended[0] <= ended[1]

    # Workers.

    def run(self, place: int = 0) -> None:
        """Have a worker run a message of the queue, and report."""
        if not self.queue:
            return
        message = self.queue.pop(place % len(self.queue))
        index = int(message.uid.rpartition("/")[2])
        self.runs[index] += 1
        bad = self.fails(index)
        body = report_of(message, EventKind.FAILED if bad else EventKind.SUCCEEDED)
        self.do(lambda: self.deliver(body))

    def deliver(self, body: bytes) -> None:
        tag = self.operator.harness.message(body)
        self.operator.bodies[tag] = body

    # In the end.

    def finish(self) -> None:
        """Have everything work from now on, until the batch has ended."""
        for _ in range(400):
            self.write()
            if self.is_deleted and not self.operator.harness.writer.writes:
                break
            if self.phase in TERMINAL and not self.operator.harness.writer.writes:
                break
            self.run()
            if not self.queue:
                self.pass_time(1.1)
        while self.queue:
            self.run()
        for _ in range(3):
            self.write()
            self.pass_time(1.1)

    def check_end(self) -> None:
        """Check that nothing is left over."""
        assert not self._unacknowledged(), "an outcome is not acknowledged"
        assert not self.operator.harness.tasks.tasks, "an item is tracked"
        assert len(self.operator.batches) == 0
        assert self.operator.harness.dispatcher.waiting == 0
        assert not self.operator.harness.problems
        assert not self.operator.harness.publisher.events, "an event about an item"
        assert not self.operator.harness.completed

    def close(self) -> None:
        self.loop.die()


def report_of(message: WorkMessage, kind: EventKind) -> bytes:
    """Return a worker's report about a message."""
    error = EventError(type="Boom", message="it broke") if kind is EventKind.FAILED else None
    return encode(
        AttemptEvent(
            kind=kind,
            namespace=message.namespace,
            queue=message.queue,
            task=message.task,
            uid=message.uid,
            token=message.token,
            attempt=message.attempt,
            epoch=message.epoch,
            worker="pod-1",
            seconds=0.5,
            error=error,
        )
    )
