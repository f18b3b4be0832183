"""Faults of the network as two pods see them: what one sends, the other gets or does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from devcluster.builders import docker_answers
from tests.conftest import Kubectl
from tests.faults.network import PodNetwork
from tests.faults.node_shell import NodeShell

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(docker_answers(), reason="a Docker engine answers: there is no native node"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node's namespaces need root"),
]

#: Answers each connection with the bytes that its first line asks for.
_SERVER = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(bytes(int(self.rfile.readline())))
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("", 7000), Handler).serve_forever()
"""

#: Gets bytes from the server, and prints how many seconds that took, or the error.
_CLIENT = """
import socket, sys, time
address, count, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
began = time.monotonic()
try:
    with socket.create_connection((address, 7000), timeout=patience) as connection:
        connection.sendall(b"%d\\n" % count)
        while count:
            got = len(connection.recv(65536))
            count -= got
            if not got:
                sys.exit("cut short")
    print(time.monotonic() - began)
except TimeoutError:
    print("timeout")
"""


@dataclass(frozen=True)
class Pods:
    """A server and a client in a namespace of the module's own."""

    kubectl: Kubectl
    namespace: str
    server_address: str
    node: str

    @property
    def network(self) -> PodNetwork:
        return PodNetwork(self.kubectl, self.namespace)

    def get(self, count: int = 1, *, patience: float = 20) -> str:
        """Get bytes from the server; return the seconds it took, or ``timeout``."""
        command = ("exec", "-n", self.namespace, "client", "--", "python3", "-c", _CLIENT)
        return self.kubectl.ok(*command, self.server_address, str(count), str(patience)).strip()


@pytest.fixture(scope="module")
def pods(kubectl: Kubectl) -> Iterator[Pods]:
    namespace = f"faults-{uuid.uuid4().hex[:8]}"
    kubectl.ok("create", "namespace", namespace)
    commands = {"server": ["python3", "-c", _SERVER], "client": ["sleep", "infinity"]}
    try:
        for name, command in commands.items():
            container = {"name": "only", "image": "taskqueue-operator:dev", "command": command}
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            }
            kubectl.ok("create", "-n", namespace, "-f", "-", input=json.dumps(pod))
        waiting = ("wait", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
        kubectl.ok(*waiting, "pod/server", "pod/client")
        shown = json.loads(kubectl.ok("get", "pod", "server", "-n", namespace, "-o", "json"))
        made = Pods(kubectl, namespace, shown["status"]["podIP"], shown["spec"]["nodeName"])
        deadline = time.monotonic() + 30
        while True:
            try:
                made.get()
                break
            except AssertionError:  # the server does not listen yet
                assert time.monotonic() < deadline
        yield made
    finally:
        kubectl.ok("delete", "namespace", namespace, "--wait=false")


def changes(pods: Pods) -> list[str]:
    """Return the rules and queueing disciplines that faults have made in the node."""
    shell = NodeShell(pods.node)
    rules = shell.run("iptables", "-w", "-t", "mangle", "-S").splitlines()
    disciplines = shell.run("tc", "qdisc", "show").splitlines()
    return [line for line in rules + disciplines if "FAULT-" in line or "tbf" in line]


def until_unchanged(pods: Pods) -> None:
    deadline = time.monotonic() + 20
    while made := changes(pods):
        assert time.monotonic() < deadline, made
        time.sleep(0.1)


def test_cut_drops_packets_of_one_port_until_its_end(pods: Pods) -> None:
    with pods.network.cut("client", peer=pods.server_address, port=7000) as counts:
        assert pods.get(patience=1.5) == "timeout"
        dropped, passed = counts.read()
        assert dropped > 0
        assert passed == 0
        assert changes(pods)
    assert float(pods.get()) < 15
    with pods.network.cut("client", port=7001):
        assert float(pods.get()) < 15
    assert not changes(pods)


def test_cut_of_a_pod_from_everybody(pods: Pods) -> None:
    with pods.network.cut("server"):
        assert pods.get(patience=1) == "timeout"
    assert float(pods.get()) < 15


def test_cut_ends_after_its_seconds_although_the_test_goes_on(pods: Pods) -> None:
    with pods.network.cut("server", seconds=1) as counts:
        until_unchanged(pods)
        assert float(pods.get()) < 15
        with pytest.raises(RuntimeError, match="the fault has ended"):
            counts.read()


def test_loss_drops_about_the_share_that_was_asked_for(pods: Pods) -> None:
    flood = """
import socket, sys, time
with socket.socket(type=socket.SOCK_DGRAM) as sender:
    for _ in range(2000):
        sender.sendto(b"x", (sys.argv[1], 7001))
        time.sleep(0.0005)
"""
    with pods.network.loss("client", 0.3, peer=pods.server_address) as counts:
        command = ("exec", "-n", pods.namespace, "client", "--", "python3", "-c", flood)
        pods.kubectl.ok(*command, pods.server_address)
        dropped, passed = counts.read()
    assert dropped + passed >= 2000
    assert 0.25 < dropped / (dropped + passed) < 0.35


def test_rate_slows_what_a_pod_receives_and_what_it_sends(pods: Pods) -> None:
    for pod in ("client", "server"):
        with pods.network.rate(pod, 500):
            # 62,500 bytes a second, but for the first 8 KiB.
            assert float(pods.get(200_000)) > 2.5
    assert float(pods.get(200_000)) < 2.5
    assert not changes(pods)


def test_faults_end_with_the_process_that_made_them(pods: Pods) -> None:
    program = f"""
import sys, time
from tests.conftest import Cluster, Kubectl
from tests.faults.network import PodNetwork
from pathlib import Path
kubectl = Kubectl(Cluster(Path(sys.argv[1]), Path(sys.argv[2])))
with PodNetwork(kubectl, {pods.namespace!r}).cut("server"):
    print("cut", flush=True)
    time.sleep(60)
"""
    cluster = pods.kubectl._cluster
    command = [sys.executable, "-c", program, str(cluster.kubeconfig), str(cluster.kubectl)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "cut\n"
        assert changes(pods)
        process.kill()
    until_unchanged(pods)


def test_cut_refuses_a_pod_of_the_hosts_network(pods: Pods) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "host"},
        "spec": {
            "hostNetwork": True,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "only", "image": "taskqueue-operator:dev", "command": ["sleep", "1000"]}
            ],
        },
    }
    pods.kubectl.ok("create", "-n", pods.namespace, "-f", "-", input=json.dumps(pod))
    ready = ("wait", "-n", pods.namespace, "--for=condition=Ready", "--timeout=60s", "pod/host")
    pods.kubectl.ok(*ready)
    with pytest.raises(ValueError, match="shares its node's address"), pods.network.cut("host"):
        pass
