"""Kills and stops processes of the test's cluster, by role.

    processes.kill(KUBELET)
    with processes.stopped(worker("shop", "thumbnails")):
        ...

Processes are found inside the PID namespace of the cluster's node, so nothing else of the machine
can be hit, and signalled by pid and start time. A native node is entered directly. Any other
cluster is entered through a privileged pod, which sees all processes of its node, and reaches
processes of pods only: the programs of the node are what keeps the pod's connection, and the
cluster may be somebody's.

A signal from inside a pod would not do: the first process of a container ignores it. Nor would the
deletion of the pod: its processes get SIGTERM first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from devcluster import cluster_state
from devcluster.node_settings import API_PORT
from tests.e2e.api import Api, Body

if TYPE_CHECKING:
    from tests.conftest import Kubectl

_AGENT = Path(__file__).with_name("process_agent.py").read_text()

#: A command that runs the agent, up to its arguments.
_Command = Sequence[str]


@dataclass(frozen=True)
class Process:
    """A process of the node: pid and start time as its PID namespace sees them."""

    pid: int
    started: int
    command: tuple[str, ...]
    variables: Mapping[str, str]
    pod_uid: str

    @property
    def program(self) -> str:
        """The name of its program, without the folder."""
        return self.command[0].rpartition("/")[2]

    @property
    def address(self) -> str:
        """What the agent knows it by."""
        return f"{self.pid}:{self.started}"


@dataclass(frozen=True)
class Role:
    """A kind of process: what its command says, and in which pods it runs.

    Attributes:
        namespace: only processes in pods of this namespace count; None: only those in no pod.
        pod: only those in the pod of this name.
    """

    name: str
    matches: Callable[[Process], bool]
    namespace: str | None = None
    pod: str | None = None


def _program(name: str) -> Role:
    return Role(name, lambda process: process.program == name)


ETCD = _program("etcd")
API_SERVER = _program("kube-apiserver")
CONTROLLER_MANAGER = _program("kube-controller-manager")
SCHEDULER = _program("kube-scheduler")
KUBELET = _program("kubelet")
KUBE_PROXY = _program("kube-proxy")
CONTAINERD = _program("containerd")
COREDNS = _program("coredns")

#: The programs that make up a node.
NODE_ROLES = (
    ETCD,
    API_SERVER,
    CONTROLLER_MANAGER,
    SCHEDULER,
    KUBELET,
    KUBE_PROXY,
    CONTAINERD,
    COREDNS,
)


def _runs(process: Process, what: str) -> bool:
    return process.command[1:4] == ("-m", "taskqueue", what)


def operator(namespace: str = "taskqueue-system") -> Role:
    """Return the role of the operator."""
    return Role("operator", lambda process: _runs(process, "operator"), namespace)


def rabbitmq(namespace: str = "rabbitmq", pod: str | None = None) -> Role:
    """Return the role of a RabbitMQ server, of all its nodes or of the one in a pod."""
    return Role("rabbitmq", lambda process: process.program == "beam.smp", namespace, pod)


def worker(namespace: str, queue: str) -> Role:
    """Return the role of a TaskQueue's workers, the children that run handlers included."""
    place = {"TASKQUEUE_NAMESPACE": namespace, "TASKQUEUE_QUEUE": queue}
    return Role(
        f"worker of {namespace}/{queue}",
        lambda process: place.items() <= process.variables.items(),
        namespace,
    )


def whole_pod(namespace: str, name: str) -> Role:
    """Return the role of everything that runs in the containers of a pod."""
    return Role(f"pod {namespace}/{name}", lambda process: True, namespace, name)


class _Node(Protocol):
    """Where the agent is run."""

    def prepare(self) -> None: ...

    def agent(self) -> _Command: ...


class Processes:
    """Finds, kills and stops processes of one cluster; usable from any thread.

    Args:
        api: a client of the cluster.
        kubectl: for the same cluster.
        namespace: where a pod may be started to enter the node.
        through_pod: enter a native node through a pod, too.
    """

    def __init__(
        self, api: Api, kubectl: Kubectl, namespace: str, *, through_pod: bool = False
    ) -> None:
        self._api = api
        native = [node for node in _native_nodes() if _server(node) == api.server]
        self._node: _Node
        if native and not through_pod:
            self._node = _NativeNode(native[0])
        else:
            self._node = _PodNode(api, kubectl, namespace)

    @property
    def is_native(self) -> bool:
        """Whether the node is one that devcluster runs on this machine."""
        return isinstance(self._node, _NativeNode)

    def prepare(self) -> None:
        """Do beforehand what makes the first call slow."""
        self._node.prepare()

    def find(self, role: Role) -> list[Process]:
        """Return the processes of a role, oldest first.

        A role with a namespace needs the API server: find its processes before you stop that.
        """
        found = [one for one in self._all() if role.matches(one)]
        if role.namespace is None:
            assert self.is_native, f"{role.name} can be reached in a native node only"
            return [one for one in found if not one.pod_uid]
        uids = self._pod_uids(role)
        # A sandbox's own process has no HOSTNAME.
        found = [one for one in found if one.pod_uid in uids and "HOSTNAME" in one.variables]
        return sorted(found, key=lambda one: one.started)

    def wait(
        self, role: Role, *, other_than: Sequence[Process] = (), seconds: float = 60
    ) -> list[Process]:
        """Return the processes of a role once there are some, and none of these is left."""
        deadline = time.monotonic() + seconds
        former = {one.address for one in other_than}
        while not (found := self.find(role)) or former & {one.address for one in found}:
            assert time.monotonic() < deadline, f"{role.name}: not started within {seconds:g} s"
            time.sleep(0.1)
        return found

    def kill(self, target: Role | Sequence[Process]) -> list[Process]:
        """Send SIGKILL to processes; return those that got it.

        Raises:
            AssertionError: nothing of the target runs.
        """
        self.prepare()
        found = self._resolve(target)
        answer = self._ask("signal", "SIGKILL", *(one.address for one in found))
        killed = [one for one in found if one.pid in json.loads(answer)]
        assert killed, f"{_name(target)} has ended already"
        return killed

    @contextmanager
    def stopped(
        self, target: Role | Sequence[Process], *, seconds: float = 60
    ) -> Iterator[list[Process]]:
        """Send SIGSTOP to processes, and SIGCONT at the end of the block; yield them.

        They go on when this program ends, too, and after ``seconds``.

        Raises:
            AssertionError: nothing of the target runs.
        """
        self.prepare()
        found = self._resolve(target)
        addresses = [one.address for one in found]
        with subprocess.Popen(
            [*self._node.agent(), "hold", str(seconds), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holding:
            assert holding.stdin is not None
            assert holding.stdout is not None
            try:
                pids = json.loads(holding.stdout.readline() or "[]")
                assert pids, f"{_name(target)} has ended already"
                yield [one for one in found if one.pid in pids]
            finally:
                holding.stdin.close()

    def _resolve(self, target: Role | Sequence[Process]) -> Sequence[Process]:
        found = self.find(target) if isinstance(target, Role) else target
        assert found, f"{_name(target)} does not run"
        return found

    def _all(self) -> list[Process]:
        self.prepare()
        return [
            Process(**{**one, "command": tuple(one["command"])})
            for one in json.loads(self._ask("list"))
        ]

    def _pod_uids(self, role: Role) -> set[str]:
        pods = self._api.get(f"/api/v1/namespaces/{role.namespace}/pods")["items"]
        return {
            one["metadata"]["uid"] for one in pods if role.pod in (None, one["metadata"]["name"])
        }

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._node.agent(), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class _NativeNode:
    """The namespaces of a node that devcluster runs on this machine."""

    def __init__(self, record: cluster_state.Record) -> None:
        self._record = record

    def prepare(self) -> None:
        assert self._record.alive, f"cluster '{self._record.name}' has ended"

    def agent(self) -> _Command:
        enter = ["nsenter", f"--target={self._record.pid}", "--mount", "--pid"]
        return [*enter, sys.executable, "-I", "-c", _AGENT]


_POD: Body = {
    "metadata": {"name": "process-agent"},
    "spec": {
        "hostPID": True,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "shell",
                "image": "taskqueue-operator:dev",
                "command": ["sleep", "infinity"],
                "securityContext": {"privileged": True, "runAsUser": 0, "runAsNonRoot": False},
            }
        ],
    },
}


class _PodNode:
    """The node of a privileged pod, which sees all its processes."""

    def __init__(self, api: Api, kubectl: Kubectl, namespace: str) -> None:
        self._api = api
        self._kubectl = kubectl
        self._namespace = namespace
        self._lock = threading.Lock()
        self._ready = False

    def prepare(self) -> None:
        """Start the pod, unless it runs."""
        with self._lock:
            if not self._ready:
                self._start()

    def agent(self) -> _Command:
        """Return the command that runs the agent in the pod."""
        execute = ("exec", "-i", "-n", self._namespace, _POD["metadata"]["name"], "--")
        return [*self._kubectl.command(*execute), "python3", "-I", "-c", _AGENT]

    def _start(self) -> None:
        pods = f"/api/v1/namespaces/{self._namespace}/pods"
        self._api.request("POST", pods, _POD)
        deadline = time.monotonic() + 60
        while not self._ready:
            status = self._api.get(f"{pods}/{_POD['metadata']['name']}").get("status", {})
            self._ready = status.get("phase") == "Running"
            assert time.monotonic() < deadline, status
            time.sleep(0.1)


def _native_nodes() -> Iterator[cluster_state.Record]:
    return (cluster_state.get(name) for name in cluster_state.names())


def _server(record: cluster_state.Record) -> str:
    return f"https://{record.link.node_address}:{API_PORT}"


def _name(target: Role | Sequence[Process]) -> str:
    return target.name if isinstance(target, Role) else ", ".join(p.program for p in target)
