"""The life of a native node: it comes up, runs pods, survives being killed, and goes without trace.

These clusters have names of their own and live beside the development cluster.
"""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster import cluster_state, images, programs
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


class NativeCluster:
    """One cluster, driven by the command line."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.kubeconfig = folder / "kubeconfig"

    def kind(self, *arguments: str) -> str:
        done = subprocess.run(
            [KIND, *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(self) -> None:
        self.kind("create", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")

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

    def run_pod(self, image: str, command: list[str] | None = None) -> None:
        container = {"name": "only", "image": image, "imagePullPolicy": "Never"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "trial"},
            "spec": {
                "restartPolicy": "Never",
                "containers": [container | ({"command": command} if command else {})],
            },
        }
        self.kubectl("apply", "-f", "-", input=json.dumps(pod))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NativeCluster]:
    prepare(Steps(), with_images=False)
    cluster = NativeCluster(f"trial-{uuid.uuid4().hex[:6]}", tmp_path)
    cluster.create()
    yield cluster
    cluster.delete()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def descendants(pid: int) -> dict[int, int | None]:
    """The processes below a process and itself, with when they started."""
    parents = {int(p.name): parent_of(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {process: cluster_state.start_time(process) for process in found}


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
        "chains": sorted(line for line in chains.splitlines() if line.startswith((":", "-A"))),
        "mounts": [m for m in Path("/proc/mounts").read_text().splitlines() if str(STATE) in m],
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        "cgroups": sorted(map(str, Path("/sys/fs/cgroup").glob(f"**/*{name}*"))),
        "state": (STATE / name).exists(),
    }


def test_a_pod_runs_and_finds_services_by_name(cluster: NativeCluster) -> None:
    images.build_operator()
    cluster.kind("load", "docker-image", f"--name={cluster.name}", images.OPERATOR)
    cluster.run_pod(images.OPERATOR, ["python3", "-c", LOOK_AROUND])
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/trial")
    assert cluster.kubectl("logs", "trial").splitlines() == [
        "kubernetes is 10.96.0.1 10.96.0.1",
        "trusted TLSv1.3",
        "nobody is True",
    ]


def test_deletion_leaves_nothing_behind(tmp_path: Path) -> None:
    prepare(Steps(), with_images=False)
    cluster = NativeCluster(f"trial-{uuid.uuid4().hex[:6]}", tmp_path)
    before = host_traces(cluster.name)
    try:
        cluster.create()
        cluster.run_pod(PAUSE_IMAGE)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/trial")
        record = cluster_state.get(cluster.name)
        processes = descendants(record.pid)
        namespaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in processes}
        during = host_traces(cluster.name)
    finally:
        cluster.delete()
    assert len(processes) >= 10
    assert os.readlink("/proc/self/ns/net") not in namespaces
    assert during["links"] != before["links"]
    assert during["cgroups"]

    assert host_traces(cluster.name) == before
    assert not [pid for pid, start in processes.items() if cluster_state.start_time(pid) == start]
    assert not namespaces & network_namespaces()
    assert cluster.name not in cluster.kubeconfig.read_text()
    cluster.delete()  # again, with nothing there


def test_after_its_init_is_killed_a_cluster_is_not_listed_and_can_be_made_again(
    cluster: NativeCluster,
) -> None:
    record = cluster_state.get(cluster.name)
    processes = descendants(record.pid)
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not cluster.listed())
    until(lambda: not any(cluster_state.start_time(p) == start for p, start in processes.items()))
    cluster.create()
    assert cluster.listed()
    ready = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    assert cluster.kubectl("get", "nodes", "-o", ready) == "True"


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
