"""Which node takes which pods."""

import json
from typing import Any

import pytest

from devcluster import placement
from devcluster.node_settings import CONTROL_PLANE_KEY
from devcluster.placement import SPARE_TAINT, changes, is_ready


def node(name: str, *taints: str, is_control_plane: bool = False) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {CONTROL_PLANE_KEY: ""} if is_control_plane else {}},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]},
        "status": {"conditions": []},
    }


def test_the_control_plane_takes_pods_and_workers_are_spare() -> None:
    found = [
        node("c-control-plane", CONTROL_PLANE_KEY, is_control_plane=True),
        node("c-worker"),
        node("c-worker2", "node.kubernetes.io/not-ready"),
    ]
    assert changes(found) == [
        ["c-control-plane", f"{CONTROL_PLANE_KEY}:NoSchedule-"],
        ["c-worker", f"{SPARE_TAINT}:NoSchedule"],
        ["c-worker2", f"{SPARE_TAINT}:NoSchedule"],
    ]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_nodes_that_are_arranged_are_left_alone(workers: int) -> None:
    found = [node("c-control-plane", is_control_plane=True)]
    found += [node(f"c-worker{number}", SPARE_TAINT) for number in range(workers)]
    assert changes(found) == []


def test_a_single_node_without_a_role_stays_open() -> None:
    assert changes([node("somebody's")]) == []


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], False),
        ([{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}], False),
        ([{"type": "DiskPressure", "status": "True"}], False),
        ([{"type": "Ready", "status": "True", "reason": "KubeletReady"}], True),
    ],
)
def test_readiness(conditions: list[dict[str, str]], expected: bool) -> None:
    assert is_ready({"status": {"conditions": conditions}}) is expected


def test_nodes_are_arranged_by_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []

    def run(command: list[str]) -> str:
        said.append(command)
        return json.dumps({"items": [node("w"), node("v")]})

    monkeypatch.setattr(placement, "run", run)
    assert placement.arrange(["kubectl"]) == ["w", "v"]
    assert said[1] == ["kubectl", "taint", "node", "w", f"{SPARE_TAINT}:NoSchedule"]
