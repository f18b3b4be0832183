"""The life of native nodes: they come up, run pods, survive being killed, and go without trace.

These clusters have names of their own and live beside the development cluster.
"""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from devcluster import cluster_state, images, native_cluster, programs, subnets
from devcluster.builders import docker_answers
from devcluster.cluster import prepare
from devcluster.node_settings import PAUSE_IMAGE
from devcluster.paths import CHECKOUT, STATE
from devcluster.progress import Steps

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(docker_answers(), reason="a Docker engine answers: kind makes the cluster"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a native node needs root"),
]

KIND = CHECKOUT / "devcluster" / "bin" / "kind"

#: Asks the cluster's DNS for a name that is and one that is not, and the API server for anything.
LOOK_AROUND = """
import socket, ssl
address = socket.gethostbyname("kubernetes.default.svc.cluster.local")
print("kubernetes is", address, socket.gethostbyname("kubernetes.default"))
ca = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
trust = ssl.create_default_context(cafile=ca)
with socket.create_connection((address, 443), timeout=5) as plain:
    with trust.wrap_socket(plain, server_hostname="kubernetes.default.svc") as secure:
        print("trusted", secure.version())
try:
    socket.gethostbyname("nobody.default.svc.cluster.local")
except socket.gaierror as error:
    print("nobody is", error.errno == socket.EAI_NONAME)
"""


#: Answers whoever connects with the address that it sees them at.
MIRROR = """
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.client_address[0].encode())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("", 7000), Handler).serve_forever()
"""

#: Prints what the mirrors at some hosts say.
LOOK_INTO = """
import socket, sys
for host in sys.argv[1:]:
    with socket.create_connection((host, 7000), timeout=20) as connection:
        print(connection.makefile().read())
"""


class NativeCluster:
    """One cluster of a control plane and a worker, driven by the command line."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.kubeconfig = folder / "kubeconfig"
        self.config = folder / "config.yaml"
        self.config.write_text(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"
            "nodes:\n- role: control-plane\n- role: worker\n"
        )
        self.nodes = (f"{name}-control-plane", f"{name}-worker")

    def kind(self, *arguments: str) -> str:
        done = subprocess.run(
            [KIND, *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(self) -> None:
        options = (f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")
        self.kind("create", "cluster", *options, f"--config={self.config}")

    def delete(self) -> None:
        self.kind("delete", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")

    def listed(self) -> bool:
        return self.name in self.kind("get", "clusters").splitlines()

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        done = subprocess.run(
            [programs.kubectl(), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run_pod(self, node: str, image: str, command: list[str] | None = None) -> str:
        """Start a pod on a node, whatever its taints; return the pod's name."""
        container = {"name": "only", "image": image, "imagePullPolicy": "Never"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"on-{node}", "labels": {"on": node}},
            "spec": {
                "nodeName": node,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [container | ({"command": command} if command else {})],
            },
        }
        self.kubectl("apply", "-f", "-", input=json.dumps(pod))
        return f"on-{node}"

    def processes(self) -> dict[int, int]:
        """All processes of the cluster's nodes, with when they started."""
        layout = cluster_state.get(self.name)
        return {
            pid: started
            for node in layout.nodes
            for pid, started in descendants(cluster_state.get_record(node).pid).items()
        }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeCluster]:
    """A cluster for several tests, with the operator's image; each leaves it whole."""
    prepare(Steps())
    folder = tmp_path_factory.mktemp("cluster")
    cluster = NativeCluster(f"trial-{uuid.uuid4().hex[:6]}", folder)
    cluster.create()
    cluster.kind("load", "docker-image", f"--name={cluster.name}", images.OPERATOR)
    yield cluster
    cluster.delete()


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def descendants(pid: int) -> dict[int, int]:
    """The living processes below a process and itself, with when they started."""
    parents = {int(p.name): parent_of(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    started = {process: cluster_state.start_time(process) for process in found}
    # One that ended meanwhile has no start, as it has none afterwards.
    return {process: start for process, start in started.items() if start is not None}


def network_namespaces() -> set[str]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(os.readlink(process / "ns" / "net"))
        except OSError:
            continue
    return found


def host_traces(name: str) -> dict[str, object]:
    """What a node could leave on the host."""
    chains = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return {
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": sorted(subnets.used_on_this_machine()),
        "chains": sorted(line for line in chains.splitlines() if line.startswith((":", "-A"))),
        "mounts": [m for m in Path("/proc/mounts").read_text().splitlines() if str(STATE) in m],
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        # Unlike glob, it does not mind those of other pods that go meanwhile.
        "cgroups": sorted(at for at, _, _ in os.walk("/sys/fs/cgroup") if name in Path(at).name),
        "state": (STATE / name).exists(),
    }


def test_a_pod_of_any_node_finds_services_by_name(cluster: NativeCluster) -> None:
    for node in cluster.nodes:
        pod = cluster.run_pod(node, images.OPERATOR, ["python3", "-c", LOOK_AROUND])
        cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{pod}")
        assert cluster.kubectl("logs", pod).splitlines() == [
            "kubernetes is 10.96.0.1 10.96.0.1",
            "trusted TLSv1.3",
            "nobody is True",
        ], node
        cluster.kubectl("delete", "pod", pod)


def test_pods_of_different_nodes_reach_each_other_and_see_true_addresses(
    cluster: NativeCluster,
) -> None:
    pods = {
        node: cluster.run_pod(node, images.OPERATOR, ["python3", "-c", MIRROR])
        for node in cluster.nodes
    }
    cluster.kubectl("wait", "--for=condition=Ready", *(f"pod/{pod}" for pod in pods.values()))
    addresses = {
        node: cluster.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")
        for node, pod in pods.items()
    }
    for node, pod in pods.items():
        cluster.kubectl("expose", "pod", pod, f"--name=of-{node}", "--port=7000")
    for here, there in (cluster.nodes, cluster.nodes[::-1]):
        until(lambda: listens(cluster, pods[there]), 30)  # noqa: B023
        hosts = [addresses[there], f"of-{there}"]
        command = ["exec", pods[here], "--", "python3", "-c", LOOK_INTO, *hosts]
        assert cluster.kubectl(*command).splitlines() == [addresses[here]] * 2
        described = json.loads(cluster.kubectl("get", "node", here, "-o", "json"))
        assert ip_address(addresses[here]) in ip_network(described["spec"]["podCIDR"])
    cluster.kubectl("delete", "pod", *pods.values())


def listens(cluster: NativeCluster, pod: str) -> bool:
    """Whether the mirror in a pod answers there."""
    command = ["exec", pod, "--", "python3", "-c", LOOK_INTO, "127.0.0.1"]
    try:
        return cluster.kubectl(*command) == "127.0.0.1\n"
    except AssertionError:
        return False


def test_a_worker_that_was_stopped_comes_back_with_its_images(cluster: NativeCluster) -> None:
    name, worker = cluster.name, cluster.nodes[1]
    before = cluster_state.get_record(cluster_state.get(name).nodes[1])
    pod = cluster.run_pod(worker, PAUSE_IMAGE)
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}")
    processes = descendants(before.pid)
    native_cluster.stop_worker(name, worker)
    assert not [pid for pid, start in processes.items() if cluster_state.start_time(pid) == start]
    assert cluster.kubectl("get", "--raw", "/readyz") == "ok"
    native_cluster.start_worker(name, worker)
    cluster.kubectl("delete", "pod", pod, "--timeout=50s")
    pod = cluster.run_pod(worker, PAUSE_IMAGE)
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=50s")
    after = cluster_state.get_record(cluster_state.get(name).nodes[1])
    assert (after.pid, after.started) != (before.pid, before.started)


def test_deletion_leaves_nothing_behind(tmp_path: Path) -> None:
    prepare(Steps(), with_images=False)
    cluster = NativeCluster(f"trial-{uuid.uuid4().hex[:6]}", tmp_path)
    before = host_traces(cluster.name)
    try:
        cluster.create()
        for node in cluster.nodes:
            pod = cluster.run_pod(node, PAUSE_IMAGE)
            cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}")
        processes = cluster.processes()
        namespaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in processes}
        during = host_traces(cluster.name)
    finally:
        cluster.delete()
    assert len(processes) >= 15
    assert os.readlink("/proc/self/ns/net") not in namespaces
    assert during["links"] != before["links"]
    assert during["cgroups"]

    assert host_traces(cluster.name) == before
    assert not [pid for pid, start in processes.items() if cluster_state.start_time(pid) == start]
    assert not namespaces & network_namespaces()
    assert cluster.name not in cluster.kubeconfig.read_text()
    cluster.delete()  # again, with nothing there


def test_creating_twice_is_refused_and_harms_nothing(cluster: NativeCluster) -> None:
    again = subprocess.run(
        [KIND, "create", "cluster", f"--name={cluster.name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert f"Cluster '{cluster.name}' exists already." in again.stderr
    assert cluster.kubectl("get", "--raw", "/readyz") == "ok"
    assert "10.89." in cluster.kind("get", "kubeconfig", f"--name={cluster.name}")


def test_after_the_init_of_its_control_plane_is_killed_a_cluster_can_be_made_again(
    cluster: NativeCluster,
) -> None:
    record = cluster_state.get_record(cluster_state.get(cluster.name).control_plane)
    processes = cluster.processes()
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not cluster.listed())
    until(lambda: not any(cluster_state.start_time(p) == start for p, start in processes.items()))
    cluster.create()
    assert cluster.listed()
    ready = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    assert cluster.kubectl("get", "nodes", "-o", ready) == "True True"
