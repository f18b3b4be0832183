"""`python -m devcluster` calls what its commands promise."""

from pathlib import Path

import pytest

from devcluster import __main__ as command
from devcluster import cluster
from devcluster.cluster import Engine


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command line called, and no cluster."""
    calls: list[str] = []

    def open_cluster(name: str, **options: object) -> str:
        calls.append(f"open {name} {options.get('with_images')}")
        return f"cluster {name}"

    monkeypatch.setattr(cluster, "open_cluster", open_cluster)
    monkeypatch.setattr(
        cluster, "load_images", lambda opened, *, steps: calls.append(f"load into {opened}")
    )
    monkeypatch.setattr(cluster, "prepare", lambda steps: calls.append("prepare"))
    monkeypatch.setattr(cluster, "engine", lambda: Engine(Path("none"), Path("kubectl"), "none"))
    return calls


def test_up_opens_the_cluster_and_loads_the_images(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["devcluster", "up", "--name", "c"])
    assert command.main() == 0
    assert calls == ["open c True", "load into cluster c"]


def test_up_without_images_loads_none(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["devcluster", "up", "--no-images", "--name", "c"])
    assert command.main() == 0
    assert calls == ["open c False"]


def test_images_loads_them_into_a_running_cluster_only(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["devcluster", "images", "--name", "c"])
    assert command.main() == 0
    assert calls == ["prepare"]
    monkeypatch.setattr(command, "_running", lambda: ["c"])
    assert command.main() == 0
    assert calls == ["prepare", "prepare", "open c False", "load into cluster c"]
