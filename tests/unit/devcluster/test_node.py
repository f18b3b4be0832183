"""The settings of a node, and the state kept about it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from devcluster import certificates, cluster_state, node_init, node_settings, subnets
from devcluster.certificates import Identity
from devcluster.commands import CommandError, DevclusterError, run
from devcluster.node_settings import Layout
from devcluster.subnets import Link


def layout(name: str, number: int, gates: dict[str, bool] | None = None) -> Layout:
    state = Path("/var/lib/somewhere", name)
    return Layout(name, Link(number), state, Path("/programs"), feature_gates=gates or {})


def test_two_clusters_share_no_address_folder_or_cgroup() -> None:
    one, two = layout("one", 0), layout("two", 1)
    assert one.cgroup != two.cgroup
    texts = node_settings.files(two)
    assert not any("10.89.0." in text or "/one" in text for text in texts.values())


def test_feature_gates_reach_every_program_that_has_them() -> None:
    files = node_settings.files(layout("one", 0, {"Some": True, "Other": False}))
    programs = {p["name"]: p["command"] for p in json.loads(files["node.json"])["programs"]}
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        assert "--feature-gates=Some=true,Other=false" in programs[name]
    assert json.loads(files["kubelet.json"])["featureGates"] == {"Some": True, "Other": False}


def test_without_feature_gates_none_are_passed() -> None:
    assert "--feature-gates" not in node_settings.files(layout("one", 0))["node.json"]


def test_every_program_waits_for_something_the_init_understands() -> None:
    settings = json.loads(node_settings.files(layout("one", 0))["node.json"])
    kinds = {program["after"].partition(":")[0] for program in settings["programs"]}
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
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cluster_state, "STATE", tmp_path)
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


def test_a_cluster_exists_when_its_process_lives_and_its_creation_ended(state: Path) -> None:
    written = cluster_state.write("trial", Link(3), os.getpid())
    assert cluster_state.find("trial") == written
    assert cluster_state.names() == []
    cluster_state.mark_complete("trial")
    assert cluster_state.names() == ["trial"]
    assert cluster_state.get("trial").link == Link(3)


def test_a_cluster_whose_process_ended_does_not_exist(state: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    cluster_state.write("trial", Link(0), process.pid)
    cluster_state.mark_complete("trial")
    assert cluster_state.names() == ["trial"]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert cluster_state.names() == []  # ended, and not yet waited for
    process.wait()
    assert cluster_state.names() == []
    with pytest.raises(DevclusterError, match="no running cluster named 'trial'"):
        cluster_state.get("trial")


@pytest.mark.parametrize("change", [{"boot": "another"}, {"started": 1}])
def test_another_process_or_boot_is_not_taken_for_it(
    state: Path, change: dict[str, object]
) -> None:
    cluster_state.write("trial", Link(0), os.getpid())
    file = state / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert cluster_state.find("trial") is None


def test_a_record_cut_short_is_no_cluster(state: Path) -> None:
    (state / "record.json").write_text('{"name": "tri')
    assert cluster_state.find("trial") is None


def test_the_link_of_a_dead_cluster_stays_reserved_until_it_is_removed(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subnets, "used_on_this_machine", list)
    (state / "link").write_text("0")
    assert cluster_state.reserve_link("other") == Link(1)


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
