"""A place of its own for a row: namespace, virtual host, TaskQueue, and the way to both.

What a row breaks there ends with it: the virtual host is deleted with all messages.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.names import dead_queue, routing_key, work_queue
from tests.e2e.api import Api, Body, Refused
from tests.e2e.harness import TEMPLATE, Harness
from tests.faults.raw_messages import publish_raw_properties

if TYPE_CHECKING:
    from tests.conftest import Kubectl, RabbitMQ

T = TypeVar("T")

#: The module that is mounted into worker pods as ``broken``.
HANDLERS = Path(__file__).with_name("broken_handlers.py")
#: Programs that are mounted beside it.
PROGRAMS = [Path(__file__).with_name(name) for name in ("look.py", "paths.py")]
#: How long anything may take that should happen at once.
PATIENCE = 45.0
#: How old the broker's statistics may be.
_STATISTICS_SECONDS = 8.0


@dataclass(frozen=True)
class Installation:
    """The operator that is tried, and how to reach it."""

    api: Api
    kubectl: Kubectl
    rabbitmq: RabbitMQ
    image: str
    kubeconfig: Path


class Site:
    """What a row works with."""

    def __init__(self, at: Installation) -> None:
        self.at = at
        self._kept = ExitStack()
        self.harness = Harness(at.api, at.kubectl, at.rabbitmq)
        self.namespace = self.harness.namespace
        self.vhost = self.harness.virtual_host()
        self.harness.secret("rabbit", vhost=self.vhost)
        files = {"broken.py": HANDLERS, **{path.name: path for path in PROGRAMS}}
        data = {name: path.read_text() for name, path in files.items()}
        self.harness.create_core("configmaps", "broken", data=data)

    # What a row puts in place.

    def template(self, *, args: list[str] | None = None, grace: int = 6) -> Body:
        """Return a pod template with the image that is tried and the broken handlers."""
        template = copy.deepcopy(TEMPLATE)
        spec = template["spec"]
        spec["terminationGracePeriodSeconds"] = grace
        spec["containers"][0] |= {"image": self.at.image, "args": args or ["worker", "broken"]}
        spec["volumes"][0]["configMap"] = {"name": "broken"}
        return template

    def keep(self, fault: AbstractContextManager[T]) -> T:
        """Begin what lasts until the TaskQueue is deleted."""
        return self._kept.enter_context(fault)

    def queue(self, *, slots: int = 1, template: Body | None = None, **changes: Any) -> None:
        """Create TaskQueue q with one worker, and wait until it takes Tasks."""
        workers = {"concurrency": slots, "template": template or self.template()}
        scaling = {"minReplicas": 1, "maxReplicas": 1, **changes.pop("scaling", {})}
        self.harness.queue(workers=workers, scaling=scaling, **changes)
        self.harness.ready(seconds=PATIENCE)

    # What a row does.

    def publish(self, exchange: str, key: str | bytes, properties: bytes, body: bytes) -> None:
        """Publish a message with these properties, encoded: flags and values."""
        asyncio.run(self._publish(exchange, key, properties, [body]))

    def publish_many(self, exchange: str, key: str, properties: bytes, bodies: list[bytes]) -> None:
        """Publish several messages that differ by their body."""
        asyncio.run(self._publish(exchange, key, properties, bodies))

    def wait_drained(self, queue: str) -> None:
        """Wait until a queue has nothing ready: a broker short of memory blocks its publishers."""

        def drained() -> bool:
            found = self.harness.broker_api("GET", f"queues/{self.vhost}/{queue}")
            return int(found.get("messages_ready", -1)) == 0

        assert holds_within(PATIENCE, drained), f"nobody reads {queue}"

    async def _publish(
        self, exchange: str, key: str | bytes, properties: bytes, bodies: list[bytes]
    ) -> None:
        parameters = BrokerParameters(
            host=self.at.rabbitmq.host,
            port=self.at.rabbitmq.port,
            username=self.at.rabbitmq.username,
            password=self.at.rabbitmq.password,
            virtual_host=self.vhost,
        )
        connection = await connect(parameters, name="faults", heartbeat_seconds=60)
        channel = await connection.channel()
        for body in bodies:
            publish_raw_properties(channel, exchange, key, properties, body)
        await channel.declare_queue(work_queue(self.namespace, "q"), passive=True)
        await connection.close()

    def end(self, handler: str, name: str = "", *, seconds: float = PATIENCE, **spec: Any) -> Body:
        """Create a Task and return its final status; fail if it never ends."""
        name = self.harness.task(name or handler.replace("_", "-"), handler, **spec)
        try:
            return self.harness.finished(name, seconds=seconds)
        except AssertionError:
            status = self.at.api.get(self.harness.path("tasks", name)).get("status", {})
            raise AssertionError(
                f"Task {name} is {status.get('phase')} {status.get('reason', '')} after "
                f"{seconds:g} s"
            ) from None

    def works(self, name: str = "good") -> str:
        """Check that a good Task still ends well."""
        status = self.end("echo", name, payload={"n": 1})
        assert status["phase"] == "Succeeded", f"a good Task ended as {outline(status)}"
        return "a good Task succeeds"

    # What a row looks at.

    @property
    def key(self) -> str:
        """The routing key of the TaskQueue."""
        return routing_key(self.namespace, "q")

    def dead_letters(self) -> list[bytes]:
        """Return the bodies in the dead queue."""
        found = self.harness.broker_api(
            "POST",
            f"queues/{self.vhost}/{dead_queue(self.namespace, 'q')}/get",
            {"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64"},
        )
        return [
            base64.b64decode(one["payload"])
            if one["payload_encoding"] == "base64"
            else one["payload"].encode()
            for one in found
        ]

    def parked(self, *bodies: bytes) -> str:
        """Wait until exactly these bodies are in the dead queue."""
        wanted = sorted(bodies)
        found: list[bytes] = []
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(requests.HTTPError):
                found = sorted(self.dead_letters())
            if found == wanted:
                return "parked with its body"
            time.sleep(1)
        raise AssertionError(f"{len(found)} of {len(wanted)} messages are parked with their bodies")

    def connected(self) -> str:
        """Check the condition BrokerConnected."""
        queue = self.at.api.get(self.harness.path("taskqueues", "q"))
        held = {each["type"]: each for each in queue["status"]["conditions"]}["BrokerConnected"]
        assert held["status"] == "True", f"BrokerConnected is {held['status']}: {held['reason']}"
        return "BrokerConnected"

    def all_acknowledged(self, queue: str) -> str:
        """Wait until consumers of a queue hold nothing of it, by a figure that is seconds late."""
        held = 0

        def nothing() -> bool:
            nonlocal held
            found = self.harness.broker_api("GET", f"queues/{self.vhost}/{queue}")
            held = int(found.get("messages_unacknowledged", -1))
            return held == 0

        time.sleep(_STATISTICS_SECONDS)
        free = holds_within(PATIENCE, nothing)
        assert free, f"a consumer of {queue} holds {held} messages for good"
        return "all acknowledged"

    def restarts(self) -> int:
        """Return how often the operator's container has started again."""
        pods = self.harness.operator_pods()
        return sum(
            each["restartCount"] for pod in pods for each in pod["status"]["containerStatuses"]
        )

    def close(self) -> None:
        """Delete everything."""
        with suppress(Refused, requests.HTTPError, AssertionError):
            self.harness.close()
        self._kept.close()
        self.harness.broker_api("DELETE", f"vhosts/{self.vhost}")


@contextmanager
def site(at: Installation) -> Iterator[Site]:
    """Give a row its place, and remove it."""
    made = Site(at)
    try:
        yield made
    finally:
        made.close()


def outline(status: Body) -> str:
    """Return a final status in short."""
    said = status.get("result", status.get("message", ""))
    return f"{status['phase']} {status.get('reason', '')} {json.dumps(said)[:120]}"


def holds_within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it came to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
