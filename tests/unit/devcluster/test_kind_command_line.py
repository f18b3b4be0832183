"""The replacement understands what pytest-kind really says to `kind`.

No command line is written down here for that: pytest-kind's own methods run, and what they would
have started is given to our parser.
"""

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_kind
from pytest_kind import KindCluster

from devcluster import cluster_state, kind_command
from devcluster.commands import DevclusterError
from devcluster.paths import CHECKOUT

KIND = CHECKOUT / "devcluster" / "bin" / "kind"

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: k, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: k, context: {cluster: k, user: k}}]
users: [{name: k, user: {}}]
current-context: k
"""


def understood(arguments: list[str]) -> argparse.Namespace:
    return kind_command.parser().parse_args(arguments)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """What pytest-kind said to kind, as our parser understood it; no cluster is listed."""
    heard: list[argparse.Namespace] = []

    def start(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == str(KIND)
        heard.append(understood(command[1:]))
        return subprocess.CompletedProcess(command, 0)

    def output(command: list[str], **options: Any) -> str:
        start(command)
        return ""

    monkeypatch.setattr(pytest_kind.cluster.subprocess, "run", start)
    monkeypatch.setattr(pytest_kind.cluster.subprocess, "check_output", output)
    return heard


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., KindCluster]:
    monkeypatch.chdir(tmp_path)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)

    def make(**options: Any) -> KindCluster:
        return KindCluster("trial", kubeconfig, kind_path=KIND, kubectl_path=KIND, **options)

    return make


def test_create_asks_for_the_clusters_and_then_for_ours(
    make: Callable[..., KindCluster], said: list[argparse.Namespace], tmp_path: Path
) -> None:
    make(image="kindest/node:v1.34.0").create(config_file="kind-config.yaml")
    listing, creation = said
    assert listing.handler is kind_command._get_clusters
    assert creation.handler is kind_command._create_cluster
    assert creation.name == "trial"
    assert creation.kubeconfig == tmp_path / "kubeconfig"
    assert creation.config == Path("kind-config.yaml")
    assert creation.image == "kindest/node:v1.34.0"


def test_create_without_options_is_understood(
    make: Callable[..., KindCluster], said: list[argparse.Namespace]
) -> None:
    make().create()
    assert said[-1].handler is kind_command._create_cluster
    assert said[-1].config is None
    assert said[-1].image is None


def test_delete_is_understood(
    make: Callable[..., KindCluster], said: list[argparse.Namespace], tmp_path: Path
) -> None:
    make().delete()
    assert said[-1].handler is kind_command._delete_cluster
    assert said[-1].name == "trial"
    assert said[-1].kubeconfig == tmp_path / "kubeconfig"


def test_loading_an_image_is_understood(
    make: Callable[..., KindCluster], said: list[argparse.Namespace]
) -> None:
    make().load_docker_image("taskqueue-operator:dev")
    assert said[-1].handler is kind_command._load_image
    assert said[-1].name == "trial"
    assert said[-1].images == ["taskqueue-operator:dev"]


def test_what_people_type_is_understood() -> None:
    assert understood(["load", "docker-image", "a:1", "b:2", "--name", "x"]).images == [
        "a:1",
        "b:2",
    ]
    assert understood(["get", "kubeconfig", "--name", "x"]).name == "x"
    assert understood(["create", "cluster", "--name=x", "--wait", "60s"]).wait == "60s"
    assert understood(["version"]).handler is kind_command._version


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["build", "node-image"],
        ["create"],
        ["create", "cluster", "--retain"],
        ["create", "cluster", "--kube=x"],
        ["delete", "clusters", "--all"],
        ["load", "docker-image", "--name", "x"],
    ],
)
def test_what_is_not_known_is_refused_and_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        understood(arguments)
    assert refusal.value.code == 2
    assert "kind" in capsys.readouterr().err


def test_an_error_is_one_sentence_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[str]:
        raise DevclusterError("This machine is not root.")

    monkeypatch.setattr(cluster_state, "names", fail)
    assert kind_command.main(["get", "clusters"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "ERROR: This machine is not root.\n"


def test_clusters_are_listed_one_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster_state, "names", lambda: ["one", "two"])
    assert kind_command.main(["get", "clusters"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_no_cluster_is_an_empty_listing_as_with_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster_state, "names", list)
    assert kind_command.main(["get", "clusters"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "No kind clusters found.\n"


def test_a_wrong_name_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert kind_command.main(["create", "cluster", "--name", "Not_A/Name"]) == 1
    assert "is not a valid cluster name" in capsys.readouterr().err


def test_the_executable_runs_without_the_projects_packages(tmp_path: Path) -> None:
    done = subprocess.run(
        ["python3", "-S", "-I", str(KIND), "version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kind ")
