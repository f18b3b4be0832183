"""A RabbitMQ that belongs to one module of tests: manifests/rabbitmq in a namespace of its own.

It may be started again, cut off and changed, which the broker that all tests share may not.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tests.integration.amqp.endpoint import Management

MANIFESTS = Path(__file__).parents[3] / "manifests" / "rabbitmq"

#: Both images' places of the command.
_CTL = "$(ls /opt/rabbitmq/sbin/rabbitmqctl /usr/lib/rabbitmq/bin/rabbitmqctl 2>/dev/null)"


@dataclass(frozen=True)
class OwnBroker:
    """Where it is, as a process on this machine reaches it."""

    kubectl: Callable[..., subprocess.CompletedProcess[str]]
    namespace: str
    host: str
    port: int
    management_port: int
    username: str
    password: str = field(repr=False)

    def management(self) -> Management:
        return Management(self)

    def virtual_host(self, name: str) -> None:
        """Make a virtual host that the user may use."""
        self.management().request("PUT", "vhosts", name, body={"default_queue_type": "quorum"})
        self.management().permit(name, self.username, configure=".*", write=".*", read=".*")

    def evaluate(self, expression: str) -> None:
        """Have the server evaluate an Erlang expression."""
        script = f'"{_CTL}" eval "$1"'
        self._execute("sh", "-c", script, "eval", expression)

    def start_anew(self) -> None:
        """Kill the server; its container starts again with the data it had."""
        before = self._restarts()
        self.kubectl(
            *("exec", "-n", self.namespace, "rabbitmq-0", "--"),
            *("sh", "-c", "kill -9 $(pgrep -f beam.smp) || kill -9 1"),
        )
        until(lambda: self._restarts() > before, what="the broker started again")

    def _execute(self, *command: str) -> None:
        done = self.kubectl("exec", "-n", self.namespace, "rabbitmq-0", "--", *command)
        assert done.returncode == 0, done.stderr

    def _restarts(self) -> int:
        """Count how often the container has started again; -1 while it is not ready."""
        done = self.kubectl("get", "pod", "rabbitmq-0", "-n", self.namespace, "-o", "json")
        assert done.returncode == 0, done.stderr
        (status,) = json.loads(done.stdout)["status"]["containerStatuses"]
        return int(status["restartCount"]) if status["ready"] else -1


def until(condition: Callable[[], bool], *, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s not: {what}"
        time.sleep(0.2)


def manifests(kubectl: Any, namespace: str) -> str:
    """Return manifests/rabbitmq for another namespace, its Services open to this machine."""
    objects = []
    for one in yaml.safe_load_all(kubectl.ok("kustomize", str(MANIFESTS))):
        if one["kind"] == "Namespace":
            continue
        one["metadata"]["namespace"] = namespace
        if one["kind"] == "Service":
            one["spec"]["type"] = "NodePort"
        objects.append(one)
    return yaml.safe_dump_all(objects)


@contextmanager
def own_broker(kubectl: Any, namespace: str, host: str) -> Iterator[OwnBroker]:
    """Start a RabbitMQ in a namespace, which is made and removed."""
    kubectl.ok("create", "namespace", namespace)
    try:
        kubectl.ok("apply", "-f", "-", input=manifests(kubectl, namespace))
        ready = ("statefulset/rabbitmq", "-n", namespace, "--timeout=110s")
        kubectl.ok("rollout", "status", *ready)
        service = json.loads(
            kubectl.ok("get", "service", "rabbitmq", "-n", namespace, "-o", "json")
        )
        ports = {one["name"]: one["nodePort"] for one in service["spec"]["ports"]}
        yield OwnBroker(
            kubectl=kubectl,
            namespace=namespace,
            host=host,
            port=ports["amqp"],
            management_port=ports["management"],
            username="taskqueue",
            password="only-for-trying-out",
        )
    finally:
        kubectl.ok("delete", "namespace", namespace, "--wait=false")


def uri(host: str, port: int, *, scheme: str = "http", login: tuple[str, str] | None = None) -> str:
    """Return an address as a Secret has it."""
    who = ":".join(quote(part, safe="") for part in login) + "@" if login else ""
    return f"{scheme}://{who}{host}:{port}"
