"""What the size follows: the broker's figures, also while they are away, and direct messages."""

from __future__ import annotations

import pytest

from taskqueue.client import Producer
from tests.e2e.api import Body
from tests.e2e.events import events_of
from tests.e2e.gates import Gates, template
from tests.e2e.harness import BROKER_HOST, Harness
from tests.e2e.pod_removals import PodRemovals, names_of

pytestmark = pytest.mark.cluster

_MANAGEMENT_PORT = 15672

#: Passes connections on to the broker's management; what goes away with its pod are all of them.
_PROXY = f"""
import asyncio

async def passed_on(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def serve(reader, writer):
    try:
        there = await asyncio.open_connection("{BROKER_HOST}", {_MANAGEMENT_PORT})
    except OSError:
        writer.close()
        return
    await asyncio.gather(passed_on(reader, there[1]), passed_on(there[0], writer))

async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", {_MANAGEMENT_PORT})
    await server.serve_forever()

asyncio.run(main())
"""


class Statistics:
    """The broker's statistics by a way that can be cut."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._path = f"/apis/apps/v1/namespaces/{harness.namespace}/deployments"
        self.uri = f"http://stats.{harness.namespace}.svc.cluster.local:{_MANAGEMENT_PORT}"
        labels = {"app": "stats"}
        port = {"port": _MANAGEMENT_PORT}
        harness.create_core("services", "stats", spec={"selector": labels, "ports": [port]})
        container = {
            "name": "proxy",
            "image": "taskqueue-operator:dev",
            "command": ["python3", "-c", _PROXY],
            "readinessProbe": {"tcpSocket": port, "periodSeconds": 1},
        }
        pod: Body = {"terminationGracePeriodSeconds": 0, "containers": [container]}
        body = {
            "metadata": {"name": "stats"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
        harness.api.request("POST", self._path, body)
        self._until(1)

    def cut(self) -> None:
        """Leave nobody to ask: connections there are end, new ones are refused."""
        self._scale(0)

    def mend(self) -> None:
        """Have them answered again."""
        self._scale(1)

    def _scale(self, size: int) -> None:
        self._harness.api.patch(f"{self._path}/stats/scale", {"spec": {"replicas": size}})
        self._until(size)

    def _until(self, size: int) -> None:
        def there() -> bool:
            status = self._harness.api.get(f"{self._path}/stats")["status"]
            numbers = status.get("replicas", 0), status.get("availableReplicas", 0)
            return numbers == (size, size)

        self._harness.until(there, what=f"{size} proxies for statistics")


@pytest.fixture(scope="module")
def statistics(harness: Harness) -> Statistics:
    return Statistics(harness)


@pytest.fixture(scope="module", autouse=True)
def queues(
    harness: Harness, gates: Gates, statistics: Statistics, pod_removals: PodRemovals
) -> None:
    harness.secret("watched", managementUri=statistics.uri)
    for name, secret in (("watched", "watched"), ("plain", "rabbit"), ("clock", "rabbit")):
        harness.queue(
            name,
            broker={"connectionSecret": {"name": secret}},
            workers={"concurrency": 1, "template": template()},
            scaling={"target": {"tasksPerReplica": 1}, "maxReplicas": 3},
        )


def sized(harness: Harness, queue: str, size: int, *, seconds: float = 60) -> Body:
    """Return the status of a TaskQueue once it has, and wants, so many workers."""
    return harness.queue_status(
        lambda status: (status.get("desiredReplicas"), status.get("replicas")) == (size, size),
        queue,
        what=f"at {size} workers",
        seconds=seconds,
    )


def held(harness: Harness, queue: str, size: int) -> None:
    """Return when a TaskQueue without work says that it holds this size; it must have it."""
    status = harness.queue_status(
        lambda status: status.get("backlog") == 0 and "held" in status["scaling"],
        queue,
        what="holding its size",
    )
    assert status["scaling"].startswith(f"{size} held"), status["scaling"]
    assert (status["desiredReplicas"], status["replicas"]) == (size, size)


def test_statistics_cut_off_in_the_middle_leave_the_size_as_it_is(
    harness: Harness, gates: Gates, statistics: Statistics
) -> None:
    names = [*gates.behind("cut", 2, queue="watched"), *gates.behind("seen", 2, queue="plain")]
    for queue in ("watched", "plain"):
        harness.condition("ScalingActive", "True", "Following", queue)
        sized(harness, queue, 2)
    statistics.cut()
    message = harness.condition("ScalingActive", "False", "StatisticsUnknown", "watched")
    assert statistics.uri.partition("://")[2] in message
    assert harness.rabbitmq.password not in message
    for gate in ("cut", "seen"):
        gates.open(gate)
    harness.all_finished(names)
    # Both had the same to do, and nothing now; what differs is what is known of that.
    sized(harness, "plain", 0)
    held(harness, "watched", 2)
    harness.condition("ScalingActive", "False", "StatisticsUnknown", "watched")

    # It may grow by what is known all the same.
    more = gates.behind("more", 3, queue="watched")
    sized(harness, "watched", 3)
    gates.open("more")
    harness.all_finished(more)
    held(harness, "watched", 3)

    statistics.mend()
    harness.condition("ScalingActive", "True", "Following", "watched")
    sized(harness, "watched", 0)


def test_direct_messages_being_worked_on_keep_their_workers(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    queues, rabbitmq = ("plain", "watched"), harness.rabbitmq
    uri = f"amqp://{rabbitmq.username}:{rabbitmq.password}@{rabbitmq.host}:{rabbitmq.port}/"
    with (
        events_of(harness, "plain") as plain,
        events_of(harness, "watched") as watched,
        Producer(uri) as producer,
    ):
        for queue in queues:
            producer.send(
                harness.namespace,
                queue,
                {"gate": "direct"},
                handler="wait",
                correlation_id=f"direct-{queue}",
            )
        busy = {queue: worker_of_direct(harness, queue) for queue in queues}
        # Two more workers come for Tasks and may go after them; that one may not.
        names = {queue: gates.behind(f"idle-{queue}", 2, queue=queue) for queue in queues}
        for queue in queues:
            for name in names[queue]:
                assert harness.phase(name, "Running")["worker"] != busy[queue]
            gates.open(f"idle-{queue}")
        for queue in queues:
            harness.all_finished(names[queue])
            left_alone(harness, queue, busy[queue])
        # As long as a pool with nothing to do takes to go, by the same settings.
        assert harness.finished(harness.task("passing", queue="clock"))["phase"] == "Succeeded"
        sized(harness, "clock", 0)
        for queue in queues:
            assert sized(harness, queue, 1)["ready"] == 0
            assert not pod_removals.was_removed(busy[queue])
        gates.open("direct")
        for queue, events in (("plain", plain), ("watched", watched)):
            event = events.of(f"direct-{queue}")
            assert event["type"] == "dev.taskqueue.task.succeeded.v1"
            assert (event["data"]["worker"], event["data"]["attempts"]) == (busy[queue], 1)
    for queue in queues:
        sized(harness, queue, 0)
        pod_removals.assert_unharmed(names[queue])


def left_alone(harness: Harness, queue: str, pod: str) -> None:
    """Return when a pool has but this pod."""
    harness.until(
        lambda: names_of(harness.pods(queue)) == {pod}, what=f"only {pod} is left of {queue}"
    )


def worker_of_direct(harness: Harness, queue: str) -> str:
    """Return the only worker of a pool, once the queue is empty and it has the message."""

    def taken() -> bool:
        found = harness.broker_api("GET", f"queues/%2F/taskqueue.{harness.namespace}.{queue}")
        return (found.get("messages_ready"), found.get("messages_unacknowledged")) == (0, 1)

    harness.until(taken, what="the direct message is worked on")
    (pod,) = names_of(harness.pods(queue))
    return pod
