"""The settings of nodes, and the state kept about them."""

import ipaddress
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devcluster import (
    certificates,
    cluster_state,
    control_plane_settings,
    native_cluster,
    node_init,
    subnets,
)
from devcluster.certificates import Identity
from devcluster.commands import CommandError, DevclusterError, run
from devcluster.layout import ClusterLayout, NodeLayout, Software, node_name


def layout(name: str, number: int = 0, workers: int = 2) -> ClusterLayout:
    return ClusterLayout(name, number, Path("/var/lib/somewhere", name), workers)


def files(node: NodeLayout, gates: dict[str, bool] | None = None) -> dict[str, str]:
    software = Software(Path("/programs"), feature_gates=gates or {})
    return control_plane_settings.files(node, software)


def programs(node: NodeLayout, gates: dict[str, bool] | None = None) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads(files(node, gates)["node.json"])["programs"]}


def test_two_clusters_share_no_address_folder_or_cgroup() -> None:
    one, two = layout("one"), layout("two", 1)
    assert not {n.cgroup for n in one.nodes} & {n.cgroup for n in two.nodes}
    for node in two.nodes:
        assert not any("10.89.0." in text or "/one" in text for text in files(node).values())


def test_two_nodes_of_a_cluster_share_no_address_folder_cgroup_or_name() -> None:
    nodes = layout("one", workers=3).nodes
    for what in ("name", "state", "cgroup", "kubelet_identity", "link"):
        assert len({getattr(node, what) for node in nodes}) == len(nodes), what
    ranges = [json.loads(files(node)["cni/10-devcluster.conflist"]) for node in nodes]
    found = [one["plugins"][0]["ipam"]["ranges"][0][0] for one in ranges]
    for node, one in zip(nodes, found, strict=True):
        for key in ("rangeStart", "rangeEnd", "gateway"):
            assert ipaddress.IPv4Address(one[key]) in node.link.pod_network
        # Else the address of a pod would be hidden from the pods of other nodes.
        assert one["subnet"] == subnets.POD_NETWORK


def test_a_name_of_a_cluster_never_makes_its_node_share_a_cgroup_with_anothers() -> None:
    names = ("a", "a-worker", "a-worker2", "a-control-plane", "a.worker")
    cgroups = [node.cgroup for name in names for node in layout(name, workers=3).nodes]
    assert len(set(cgroups)) == len(cgroups)


def test_nodes_are_called_as_kind_calls_them() -> None:
    names = [node_name("trial", index) for index in range(4)]
    assert names == ["trial-control-plane", "trial-worker", "trial-worker2", "trial-worker3"]
    assert [node.name for node in layout("trial", workers=3).nodes] == names


def test_only_the_control_plane_runs_the_clusters_own_programs() -> None:
    control_plane, worker, _ = layout("one").nodes
    every = {"containerd", "kubelet", "kube-proxy"}
    assert set(programs(worker)) == every
    assert set(programs(control_plane)) == every | {
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "coredns",
    }
    for node in (control_plane, worker):
        users = control_plane_settings.kubeconfig_users(node)
        command = json.dumps(programs(node)) + json.dumps(files(node))
        assert all(f"{node.config}/{user}.kubeconfig" in command for user in set(users) - {"admin"})


def test_every_program_of_a_node_has_a_certificate_of_its_own_node() -> None:
    cluster = layout("one")
    made = {one.file: one for one in control_plane_settings.identities(cluster)}
    for node in cluster.nodes:
        users = control_plane_settings.kubeconfig_users(node)
        assert set(users.values()) <= set(made)
        assert made[users["kubelet"]].user == f"system:node:{node.name}"
        kubelet = json.loads(files(node)["kubelet.json"])
        server = made[Path(kubelet["tlsCertFile"]).stem]
        assert node.link.node_address in server.addresses


@pytest.mark.parametrize(("workers", "is_tainted"), [(0, False), (1, True), (3, True)])
def test_the_control_plane_is_tainted_as_kind_does_it(workers: int, is_tainted: bool) -> None:
    for node in layout("one", workers=workers).nodes:
        taints = json.loads(files(node)["kubelet.json"])["registerWithTaints"]
        assert bool(taints) == (is_tainted and node.is_control_plane)


def test_feature_gates_reach_every_program_that_has_them() -> None:
    gates = {"Some": True, "Other": False}
    for node in layout("one").nodes:
        assert json.loads(files(node, gates)["kubelet.json"])["featureGates"] == gates
        assert json.loads(files(node, gates)["proxy.json"])["featureGates"] == gates
    started = programs(layout("one").control_plane, gates)
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        assert "--feature-gates=Some=true,Other=false" in started[name]["command"]


def test_without_feature_gates_none_are_passed() -> None:
    assert "--feature-gates" not in files(layout("one").control_plane)["node.json"]


def test_every_program_waits_for_something_the_init_understands() -> None:
    for node in layout("one").nodes:
        kinds = {one["after"].partition(":")[0] for one in programs(node).values()}
        assert kinds <= {"", "tcp", "unix", "file", "https"}


def test_init_waits_for_its_conditions(tmp_path: Path) -> None:
    assert node_init.ready("", "")
    assert not node_init.ready(f"file:{tmp_path}/x", "")
    (tmp_path / "x").touch()
    assert node_init.ready(f"file:{tmp_path}/x", "")
    assert not node_init.ready("tcp:127.0.0.1:1", "")
    assert not node_init.ready(f"unix:{tmp_path}/socket", "")


@pytest.mark.parametrize("name", ["taskqueue", "a", "a.b-c9", "x" * 40])
def test_names_that_a_cluster_can_have(name: str) -> None:
    assert cluster_state.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "A", "a/b", "-a", "a-", "a_b", "x" * 41, "a\n"])
def test_names_that_it_cannot(name: str) -> None:
    with pytest.raises(DevclusterError, match="is not a valid cluster name"):
        cluster_state.check_name(name)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterLayout:
    """A cluster with a folder for its control plane and one for a worker."""
    monkeypatch.setattr(cluster_state, "STATE", tmp_path)
    monkeypatch.setattr(native_cluster, "STATE", tmp_path)
    (tmp_path / "trial" / "worker").mkdir(parents=True)
    (tmp_path / "trial" / "link").write_text("3")
    return ClusterLayout("trial", 3, tmp_path / "trial", 1)


def test_a_cluster_exists_when_its_process_lives_and_its_creation_ended(
    trial: ClusterLayout,
) -> None:
    written = cluster_state.write(trial.control_plane, os.getpid())
    assert cluster_state.find(trial.control_plane) == written
    assert cluster_state.names() == []
    cluster_state.mark_complete("trial")
    assert cluster_state.names() == ["trial"]
    assert cluster_state.get("trial") == trial


def test_a_cluster_whose_process_ended_does_not_exist(trial: ClusterLayout) -> None:
    process = subprocess.Popen(["sleep", "60"])
    cluster_state.write(trial.control_plane, process.pid)
    cluster_state.mark_complete("trial")
    assert cluster_state.names() == ["trial"]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert cluster_state.names() == []  # ended, and not yet waited for
    process.wait()
    assert cluster_state.names() == []
    with pytest.raises(DevclusterError, match="no running cluster named 'trial'"):
        cluster_state.get("trial")


def test_a_worker_that_ended_is_named(trial: ClusterLayout) -> None:
    worker = trial.nodes[1]
    with pytest.raises(DevclusterError, match="Node 'trial-worker' does not run"):
        cluster_state.get_record(worker)
    written = cluster_state.write(worker, os.getpid())
    assert cluster_state.get_record(worker) == written


@pytest.mark.parametrize("change", [{"boot": "another"}, {"started": 1}])
def test_another_process_or_boot_is_not_taken_for_it(
    trial: ClusterLayout, change: dict[str, object]
) -> None:
    for node in trial.nodes:
        cluster_state.write(node, os.getpid())
        file = node.state / "record.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        assert cluster_state.find(node) is None


def test_a_record_cut_short_is_no_cluster(trial: ClusterLayout) -> None:
    (trial.state / "record.json").write_text('{"name": "tri')
    assert cluster_state.find(trial.control_plane) is None


def test_the_number_of_a_dead_cluster_stays_reserved_until_it_is_removed(
    trial: ClusterLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subnets, "used_on_this_machine", list)
    (trial.state / "link").write_text("0")
    assert cluster_state.reserve_number("other") == 1


def test_only_a_worker_can_be_stopped_and_started(trial: ClusterLayout) -> None:
    for node in trial.nodes:
        cluster_state.write(node, os.getpid())
    cluster_state.mark_complete("trial")
    for name in ("trial-control-plane", "trial-worker2", "nobody"):
        with pytest.raises(DevclusterError, match=r"(?s)no worker node .*\(trial-worker\)"):
            native_cluster.stop_worker("trial", name)
    with pytest.raises(DevclusterError, match="'trial-worker' runs already"):
        native_cluster.start_worker("trial", "trial-worker")


def test_certificates_pass_strict_verification(tmp_path: Path) -> None:
    server = Identity("server", "kube-apiserver", addresses=["10.96.0.1", "kubernetes"])
    certificates.issue(tmp_path, [server, Identity("admin", "me", "system:masters")])
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.crt")]
    run([*verify, "-purpose", "sslserver", tmp_path / "server.crt"])
    run([*verify, "-purpose", "sslclient", tmp_path / "admin.crt"])
    with pytest.raises(CommandError):
        run([*verify, "-purpose", "sslserver", tmp_path / "admin.crt"])
    shown = run(["openssl", "x509", "-noout", "-text", "-in", tmp_path / "server.crt"])
    assert "IP Address:10.96.0.1, DNS:kubernetes" in shown
    assert "X509v3 Authority Key Identifier" in shown
    subject = run(["openssl", "x509", "-noout", "-subject", "-in", tmp_path / "admin.crt"])
    assert "system:masters" in subject
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600


def test_a_failed_command_shows_its_last_lines_and_what_to_do() -> None:
    script = "for i in $(seq 40); do echo line $i; done; echo wrong >&2; exit 3"
    with pytest.raises(CommandError) as failed:
        run(["sh", "-c", script], hint="mend it")
    text = str(failed.value)
    assert "status 3" in text
    assert "wrong" in text
    assert "line 40" in text
    assert "line 10\n" not in text
    assert text.endswith("What to do: mend it")


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-program: not found"):
        run(["no-such-program"])
