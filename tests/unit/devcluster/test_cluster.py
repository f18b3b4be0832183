"""A cluster that is listed is used only if it is whole."""

import io
from pathlib import Path
from typing import Any

import pytest

from devcluster import cluster, kind_config, placement
from devcluster.cluster import Engine
from devcluster.commands import CommandError
from devcluster.layout import node_name
from devcluster.paths import KIND_CONFIG
from devcluster.progress import Steps

WORKERS = kind_config.parse(KIND_CONFIG.read_text()).workers
NAMES = [node_name("c", index) for index in range(WORKERS + 1)]


def node(name: str, status: str = "True") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": status}]},
    }


WHOLE = [node(name) for name in NAMES]


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clusters that were deleted; none is waited for."""
    deleted: list[str] = []
    monkeypatch.setattr(cluster, "run", lambda command: "")
    monkeypatch.setattr(cluster, "_ANSWER_S", -1.0)
    monkeypatch.setattr(cluster, "delete_cluster", lambda name, kubeconfig: deleted.append(name))
    return deleted


def revive(monkeypatch: pytest.MonkeyPatch, found: list[dict[str, Any]] | CommandError) -> str:
    def nodes(kubectl: object) -> list[dict[str, Any]]:
        if isinstance(found, CommandError):
            raise found
        return found

    monkeypatch.setattr(placement, "nodes", nodes)
    said = io.StringIO()
    engine = Engine(Path("kind"), Path("kubectl"), "none")
    cluster._revive(engine, "c", Path("kubeconfig"), Steps(out=said))
    return said.getvalue()


@pytest.mark.parametrize("found", [WHOLE, [*WHOLE, node("more")]], ids=["whole", "more"])
def test_a_whole_cluster_is_kept(
    monkeypatch: pytest.MonkeyPatch, deleted: list[str], found: list[dict[str, Any]]
) -> None:
    assert revive(monkeypatch, found) == ""
    assert deleted == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [None, "False", "Unknown"])
def test_a_cluster_without_a_ready_node_is_created_again_and_the_node_is_named(
    monkeypatch: pytest.MonkeyPatch, deleted: list[str], name: str, status: str | None
) -> None:
    others = [one for one in WHOLE if one["metadata"]["name"] != name]
    found = others if status is None else [*others, node(name, status)]
    assert f"it has no Ready node {name}: creating it again" in revive(monkeypatch, found)
    assert deleted == ["c"]


def test_a_cluster_without_an_answer_is_created_again(
    monkeypatch: pytest.MonkeyPatch, deleted: list[str]
) -> None:
    said = revive(monkeypatch, CommandError(["kubectl"], 1, "refused"))
    assert "its API server does not answer: creating it again" in said
    assert deleted == ["c"]
