"""What is missing on the machine is said clearly, and the right way to a cluster is chosen."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from devcluster import builders, cluster, packages, prerequisites, programs
from devcluster.commands import DevclusterError


class Usage(NamedTuple):
    free: int


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A PATH with nothing but what the test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    builders.docker_answers.cache_clear()
    yield tmp_path / "bin"
    builders.docker_answers.cache_clear()


def program(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{script}\n")
    (path / name).chmod(0o755)


def test_without_go_it_says_which_version_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(DevclusterError, match=r"no `go` on PATH.*\n.*install Go 1\.\d+"):
        programs.build()


def test_without_space_it_says_how_much_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: "/usr/bin/go")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=1_500_000_000))
    with pytest.raises(DevclusterError, match=r"1\.5 GB are free.*\n?.*XDG_CACHE_HOME"):
        programs.build()


def test_without_root_a_native_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DevclusterError, match="only root can create them"):
        prerequisites.require_root()


def test_without_root_missing_packages_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "SYSTEM_PATH", str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(path, "etcd", "")
    assert "etcd-server" not in packages.missing()
    with pytest.raises(DevclusterError, match=r"only root can install them: .*buildah"):
        packages.install()


def test_without_apt_missing_programs_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "SYSTEM_PATH", str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(DevclusterError, match=r"containerd.*no apt-get"):
        packages.install()


def test_without_docker_the_native_node_is_chosen(path: Path) -> None:
    chosen = cluster.engine()
    assert chosen.kind.parts[-3:] == ("devcluster", "bin", "kind")
    assert "no Docker engine answers" in chosen.description


def test_a_docker_command_without_an_engine_is_no_docker(path: Path) -> None:
    program(path, "docker", "echo cannot connect >&2; exit 1")
    assert not builders.docker_answers()
    assert isinstance(builders.builder(), builders.Buildah)


def test_with_docker_the_installed_kind_and_kubectl_are_chosen(path: Path) -> None:
    for name in ("docker", "kind", "kubectl"):
        program(path, name, "exit 0")
    chosen = cluster.engine()
    assert (chosen.kind, chosen.kubectl) == (path / "kind", path / "kubectl")
    assert "a Docker engine answers" in chosen.description
    assert isinstance(builders.builder(), builders.Docker)


def test_docker_builds_on_public_images_and_labels_what_it_builds(
    path: Path, tmp_path: Path
) -> None:
    program(path, "docker", f'echo "$@" >> {tmp_path}/said; [ "$1" != image ] || exit 1')
    docker = builders.Docker()
    assert docker.label("taskqueue-operator:dev") == ""
    assert docker.identity("taskqueue-operator:dev") == ""
    docker.build("mine:dev", Path("file"), Path("folder"), {"BASE_IMAGE": "x"}, "abc")
    assert (tmp_path / "said").read_text().splitlines()[-1] == (
        "build --tag=mine:dev --file=file --build-arg=BASE_IMAGE=x "
        f"--label={builders.CONTENT_LABEL}=abc folder"
    )
