"""Kills and stops processes of the test's cluster, by role.

    processes.kill(KUBELET.on("taskqueue-worker"))
    with processes.stopped(worker("shop", "thumbnails")):
        ...

Processes are found inside the PID namespaces of the cluster's nodes, so nothing else of the machine
can be hit, and signalled by pid and start time. A native node is entered directly. A node of any
other cluster is entered through a privileged pod, which sees all processes of its node, and reaches
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
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from devcluster import cluster_state, native_cluster
from devcluster.layout import NodeLayout
from tests.e2e.api import Api, Body

if TYPE_CHECKING:
    from tests.conftest import Kubectl

_AGENT = Path(__file__).with_name("process_agent.py").read_text()

#: A command that runs the agent, up to its arguments.
_Command = Sequence[str]


@dataclass(frozen=True)
class Process:
    """A process of a node: pid and start time as the node's PID namespace sees them.

    Attributes:
        is_outermost: whether it is in the node's PID namespace itself, not in one within.
    """

    node: str
    pid: int
    started: int
    command: tuple[str, ...]
    variables: Mapping[str, str]
    pod_uid: str
    is_outermost: bool

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
        node: only those on the node of this name; None: on all nodes.
    """

    name: str
    matches: Callable[[Process], bool]
    namespace: str | None = None
    pod: str | None = None
    node: str | None = None

    def on(self, node: str) -> Role:
        """Return this role on one node only."""
        return replace(self, name=f"{self.name} on {node}", node=node)


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

#: The programs of every node, and those that only the control plane has.
NODE_ROLES = (KUBELET, KUBE_PROXY, CONTAINERD)
CONTROL_PLANE_ROLES = (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER, COREDNS)


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
        namespace: where pods may be started to enter the nodes.
        through_pod: enter native nodes through pods, too.
    """

    def __init__(
        self, api: Api, kubectl: Kubectl, namespace: str, *, through_pod: bool = False
    ) -> None:
        self._api = api
        native = [] if through_pod else _native_nodes(api.server)
        #: Whether the nodes are those that devcluster runs on this machine.
        self.is_native = bool(native)
        self._nodes: dict[str, _Node] = {one.name: _NativeNode(one) for one in native}
        if not native:
            names = (one["metadata"]["name"] for one in api.get("/api/v1/nodes")["items"])
            self._nodes = {one: _PodNode(api, kubectl, namespace, one) for one in names}

    def prepare(self) -> None:
        """Do beforehand what makes the first call slow."""
        for node in self._nodes.values():
            node.prepare()

    def find(self, role: Role) -> list[Process]:
        """Return the processes of a role, oldest first.

        A role with a namespace needs the API server: find its processes before you stop that.
        """
        if role.namespace is None:
            assert self.is_native, f"{role.name} can be reached in native nodes only"
            nodes = [role.node] if role.node else list(self._nodes)
            found = [one for one in self._all(nodes) if one.is_outermost and not one.pod_uid]
        else:
            pods = self._pods(role)
            # A sandbox's own process has no HOSTNAME.
            found = [
                one
                for one in self._all(sorted(set(pods.values())))
                if pods.get(one.pod_uid) == one.node and "HOSTNAME" in one.variables
            ]
        return sorted(filter(role.matches, found), key=lambda one: one.started)

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

    def kill(self, target: Role | Sequence[Process], *, signal: str = "SIGKILL") -> list[Process]:
        """Send SIGKILL, or another signal, to processes; return those that got it.

        Raises:
            AssertionError: nothing of the target runs.
        """
        killed = []
        for node, found in self._by_node(target).items():
            answer = self._ask(node, "signal", signal, *(one.address for one in found))
            killed += [one for one in found if one.pid in json.loads(answer)]
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
        with ExitStack() as stack:
            held: list[Process] = []
            for node, found in self._by_node(target).items():
                held += stack.enter_context(self._held(node, found, seconds))
            assert held, f"{_name(target)} has ended already"
            yield held

    @contextmanager
    def node_down(self, node: str) -> Iterator[None]:
        """Take the power from a native worker node, and give it back at the end of the block.

        All its processes end at once and no connection is closed: its network ends with them. It
        starts with the disk that it had.
        """
        native = self._nodes[node]
        assert isinstance(native, _NativeNode), f"{node} is no native node"
        cluster = native.layout.cluster.name
        native_cluster.stop_worker(cluster, node)
        try:
            yield
        finally:
            native_cluster.start_worker(cluster, node)

    @contextmanager
    def _held(self, node: str, found: Sequence[Process], seconds: float) -> Iterator[list[Process]]:
        """Stop processes of one node; yield those that got the signal."""
        addresses = [one.address for one in found]
        with subprocess.Popen(
            [*self._nodes[node].agent(), "hold", str(seconds), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holding:
            assert holding.stdin is not None
            assert holding.stdout is not None
            try:
                pids = json.loads(holding.stdout.readline() or "[]")
                yield [one for one in found if one.pid in pids]
            finally:
                holding.stdin.close()

    def _by_node(self, target: Role | Sequence[Process]) -> dict[str, list[Process]]:
        found = self.find(target) if isinstance(target, Role) else target
        assert found, f"{_name(target)} does not run"
        result = defaultdict(list)
        for one in found:
            result[one.node].append(one)
        return result

    def _all(self, nodes: Sequence[str]) -> list[Process]:
        return [
            Process(node=node, **{**one, "command": tuple(one["command"])})
            for node in nodes
            for one in json.loads(self._ask(node, "list"))
        ]

    def _pods(self, role: Role) -> dict[str, str]:
        """Return the nodes of a role's pods, by their uids."""
        pods = self._api.get(f"/api/v1/namespaces/{role.namespace}/pods")["items"]
        return {
            one["metadata"]["uid"]: node
            for one in pods
            if (node := one["spec"].get("nodeName"))
            and role.pod in (None, one["metadata"]["name"])
            and role.node in (None, node)
        }

    def _ask(self, node: str, *arguments: str) -> str:
        self._nodes[node].prepare()
        done = subprocess.run(
            [*self._nodes[node].agent(), *arguments],
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

    def __init__(self, layout: NodeLayout) -> None:
        self.layout = layout

    def prepare(self) -> None:
        assert cluster_state.find(self.layout), f"node '{self.layout.name}' has ended"

    def agent(self) -> _Command:
        # Asked for each time: a node that was started again has another.
        pid = cluster_state.get_record(self.layout).pid
        enter = ["nsenter", f"--target={pid}", "--mount", "--pid"]
        return [*enter, sys.executable, "-I", "-c", _AGENT]


_POD_SPEC: Body = {
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
}


class _PodNode:
    """The node of a privileged pod, which sees all its processes."""

    def __init__(self, api: Api, kubectl: Kubectl, namespace: str, node: str) -> None:
        self._api = api
        self._kubectl = kubectl
        self._namespace = namespace
        self._node = node
        self._pod = f"process-agent-{node}"
        self._lock = threading.Lock()
        self._ready = False

    def prepare(self) -> None:
        """Start the pod, unless it runs."""
        with self._lock:
            if not self._ready:
                self._start()

    def agent(self) -> _Command:
        """Return the command that runs the agent in the pod."""
        execute = ("exec", "-i", "-n", self._namespace, self._pod, "--")
        return [*self._kubectl.command(*execute), "python3", "-I", "-c", _AGENT]

    def _start(self) -> None:
        pods = f"/api/v1/namespaces/{self._namespace}/pods"
        # Put there past the scheduler, whatever the node's taints.
        spec = {**_POD_SPEC, "nodeName": self._node}
        self._api.request("POST", pods, {"metadata": {"name": self._pod}, "spec": spec})
        deadline = time.monotonic() + 60
        while not self._ready:
            status = self._api.get(f"{pods}/{self._pod}").get("status", {})
            self._ready = status.get("phase") == "Running"
            assert time.monotonic() < deadline, status
            time.sleep(0.1)


def _native_nodes(server: str) -> list[NodeLayout]:
    """Return the nodes of the native cluster whose API server this is, if it is one."""
    clusters = map(cluster_state.get, cluster_state.names())
    return next((one.nodes for one in clusters if one.server == server), [])


def _name(target: Role | Sequence[Process]) -> str:
    return target.name if isinstance(target, Role) else ", ".join(p.program for p in target)
