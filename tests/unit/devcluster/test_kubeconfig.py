from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import kubeconfig


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    for file in ("ca.crt", "admin.crt", "admin.key"):
        (tmp_path / file).write_text(file)
    return tmp_path


@pytest.fixture
def ours(pki: Path) -> dict[str, Any]:
    return kubeconfig.document("trial", "https://10.89.0.2:6443", pki, "admin")


@pytest.fixture
def theirs() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {"colors": True},
        "clusters": [{"name": "prod", "cluster": {"server": "https://prod"}}],
        "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "me"}}],
        "users": [{"name": "me", "user": {"exec": {"command": "get-token", "args": ["a", "b"]}}}],
        "current-context": "prod",
    }


def names(document: dict[str, Any], kind: str) -> list[str]:
    return [item["name"] for item in document[kind]]


def test_all_entries_are_named_as_kind_names_them(ours: dict[str, Any]) -> None:
    for entries in ("clusters", "contexts", "users"):
        assert names(ours, entries) == ["kind-trial"]
    assert ours["current-context"] == "kind-trial"


def test_adding_keeps_what_others_put_in(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    both = kubeconfig.merged(theirs, ours)
    assert names(both, "clusters") == ["prod", "kind-trial"]
    assert names(both, "users") == ["me", "kind-trial"]
    assert both["current-context"] == "kind-trial"
    assert both["preferences"] == {"colors": True}


def test_adding_again_replaces(ours: dict[str, Any], pki: Path) -> None:
    (pki / "ca.crt").write_text("another")
    newer = kubeconfig.document("trial", "https://10.89.7.2:6443", pki, "admin")
    both = kubeconfig.merged(ours, newer)
    assert both == newer


def test_adding_to_an_empty_file_is_the_entry(ours: dict[str, Any]) -> None:
    # kubectl shows an empty file's lists as null.
    empty = {"clusters": None, "contexts": None, "users": None}
    assert kubeconfig.merged(empty, ours) == ours
    assert kubeconfig.merged({}, ours) == ours


def test_removing_undoes_adding(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    left = kubeconfig.without(kubeconfig.merged(theirs, ours), "trial")
    assert left == {**theirs, "current-context": ""}


def test_removing_leaves_another_context_current(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    both = kubeconfig.merged(ours, theirs)
    assert kubeconfig.without(both, "trial")["current-context"] == "prod"
    assert names(kubeconfig.without(both, "tria"), "clusters") == ["kind-trial", "prod"]


def test_what_is_written_is_yaml_that_says_the_same(
    theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path
) -> None:
    both = kubeconfig.merged(theirs, ours) | {"extensions": [], "odd": "a: b # c\n", "n": None}
    path = tmp_path / "folder" / "kubeconfig"
    kubeconfig.write(path, both)
    assert yaml.safe_load(path.read_text()) == both
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_nested_lists_are_written_as_they_are() -> None:
    value = [{"a": [1, {"b": "c"}], "d": {}}, "e", [["f"]]]
    assert yaml.safe_load(kubeconfig.to_yaml(value)) == value


def test_an_absent_or_empty_file_is_an_empty_kubeconfig(tmp_path: Path) -> None:
    no_kubectl = tmp_path / "kubectl"
    assert kubeconfig.read(tmp_path / "absent", no_kubectl) == {}
    (tmp_path / "empty").touch()
    assert kubeconfig.read(tmp_path / "empty", no_kubectl) == {}


def test_the_default_file_is_the_first_that_kubeconfig_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/one:/two")
    assert kubeconfig.default_path() == Path("/one")
    monkeypatch.delenv("KUBECONFIG")
    assert kubeconfig.default_path() == Path.home() / ".kube" / "config"
