"""Disturbs a RabbitMQ of the cluster: alarms, deletions, closed connections, stopped nodes.

    with faults.memory_alarm():
        ...
    faults.delete_exchange("taskqueue.outcomes")

Nothing that was deleted is made again: that is what tests wait for. Alarms concern everybody who
publishes to the server: use `own_broker`, `three_nodes`, or a file of `EXCLUSIVE["cluster"]`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import requests

if TYPE_CHECKING:
    from tests.conftest import Kubectl

#: Both images' places of the command.
_CTL = "$(ls /opt/rabbitmq/sbin/rabbitmqctl /usr/lib/rabbitmq/bin/rabbitmqctl 2>/dev/null)"


class Broker(Protocol):
    """Where a broker is; the fixture `rabbitmq` and `OwnBroker` are such."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def management_port(self) -> int: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...


class BrokerFaults:
    """Disturbs one broker.

    Args:
        broker: its address, and a user who may do everything.
        kubectl: for the cluster that it runs in.
        namespace: where its pods are.
        pod: the pod of the node that is disturbed, if there are several.
        virtual_host: where exchanges, queues and bindings are.
    """

    def __init__(
        self,
        broker: Broker,
        kubectl: Kubectl,
        *,
        namespace: str = "rabbitmq",
        pod: str = "rabbitmq-0",
        virtual_host: str = "/",
    ) -> None:
        self._broker = broker
        self._kubectl = kubectl
        self._namespace = namespace
        self._pod = pod
        self._virtual_host = virtual_host

    # Alarms: the node's own monitors raise and clear them.

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Lower the node's memory limit below what it uses: publishers are blocked."""
        limit = "vm_memory_monitor:get_vm_memory_high_watermark()"
        with self._alarm(
            "memory", limit, '{absolute, "1MiB"}', "vm_memory_monitor:set_vm_memory_high_watermark"
        ):
            yield

    @contextmanager
    def disk_alarm(self) -> Iterator[None]:
        """Raise the node's limit of free disk space above what there is: publishers are blocked."""
        limit = "rabbit_disk_monitor:get_disk_free_limit()"
        with self._alarm("disk", limit, str(1 << 60), "rabbit_disk_monitor:set_disk_free_limit"):
            yield

    def alarms(self) -> set[str]:
        """Return the alarms of the node: "memory", "disk"."""
        answer = self._request("GET", "health", "checks", "local-alarms")
        if answer.status_code != requests.codes.service_unavailable:
            answer.raise_for_status()
        # The API says "disk space".
        raised = answer.json().get("alarms", ())
        return {alarm["resource"].partition(" ")[0] for alarm in raised}

    @contextmanager
    def _alarm(self, kind: str, limit: str, exceeded: str, set_limit: str) -> Iterator[None]:
        before = self.evaluate(f"Before = {limit}, {set_limit}({exceeded}), Before")
        try:
            self.wait(lambda: kind in self.alarms(), what=f"in {kind} alarm")
            yield
        finally:
            self.evaluate(f"{set_limit}({before})")
            self.wait(lambda: kind not in self.alarms(), what=f"out of {kind} alarm")

    # Deletions.

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange, and its bindings with it."""
        self._manage("DELETE", "exchanges", self._virtual_host, name)

    def delete_queue(self, name: str) -> None:
        """Delete a queue or a stream, with its messages and bindings."""
        self._manage("DELETE", "queues", self._virtual_host, name)

    def delete_binding(self, exchange: str, queue: str, routing_key: str) -> None:
        """Delete a binding of a queue.

        Raises:
            AssertionError: there is none with this routing key.
        """
        ends = ("e", exchange, "q", queue)
        path = ("bindings", self._virtual_host, *ends)
        found = [one for one in self._manage("GET", *path) if one["routing_key"] == routing_key]
        assert found, f"{queue} is not bound to {exchange} with {routing_key}"
        for binding in found:
            self._manage("DELETE", *path, binding["properties_key"])

    def delete_user(self, name: str) -> None:
        """Delete a user; the broker closes the connections."""
        self._manage("DELETE", "users", name)

    def delete_secret(self, namespace: str, name: str) -> None:
        """Delete a Secret, such as the one with the broker's address."""
        self._kubectl.ok("delete", "secret", "-n", namespace, name)

    # Connections and nodes.

    def close_connections(self, user: str) -> None:
        """Close all connections of a user, as an administrator does."""
        self._manage("DELETE", "connections", "username", user)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop RabbitMQ on the node; its Erlang machine stays, so its pod does not start again."""
        self.control("stop_app")
        try:
            yield
        finally:
            self.control("start_app")

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Have the node publish a copy of each message to `amq.rabbitmq.trace` (the firehose).

        It ends when the server starts again.
        """
        self._trace("on")
        try:
            yield
        finally:
            self._trace("off")

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl on the node; return what it prints."""
        script = f'"{_CTL}" --quiet "$@"'
        execute = ("exec", "-n", self._namespace, self._pod, "--")
        return self._kubectl.ok(*execute, "sh", "-c", script, "rabbitmqctl", *arguments).strip()

    def evaluate(self, expression: str) -> str:
        """Have the node evaluate an Erlang expression; return the value, as Erlang writes it."""
        return self.control("eval", f"{expression}.")

    def wait(self, condition: Callable[[], bool], *, what: str, seconds: float = 60) -> None:
        """Return when a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not {what} within {seconds:g} s"
            time.sleep(0.2)

    def _trace(self, state: str) -> None:
        self.control(f"trace_{state}", "-p", self._virtual_host)

    def _manage(self, method: str, *path: str) -> Any:
        answer = self._request(method, *path)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _request(self, method: str, *path: str) -> requests.Response:
        broker = self._broker
        quoted = "/".join(quote(part, safe="") for part in path)
        return requests.request(
            method,
            f"http://{broker.host}:{broker.management_port}/api/{quoted}",
            auth=(broker.username, broker.password),
            timeout=30,
        )
