"""What runs write about themselves, and how it is read."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from tests.bench import recorded
from tests.bench.cluster import Cluster
from tests.bench.removals import Run


def said(pod: str, at: float, task: str = "ns/a") -> str:
    return json.dumps({"task": task, "pod": pod, "at": at})


def test_a_run_is_its_beginning_and_its_end() -> None:
    data = {
        "1.ended": said("p", 3.0),
        "1.began": said("p", 2.0),
        "2.began": said("q", 1.0, "ns/b"),
    }
    assert recorded.parse_runs(data) == (
        Run(task="b", pod="q", began=1.0, ended=None),
        Run(task="a", pod="p", began=2.0, ended=3.0),
    )


async def test_the_handlers_are_a_module_and_may_write_their_record_only() -> None:
    class Client:
        def __init__(self) -> None:
            self.made: dict[str, dict[str, Any]] = {}

        async def request(self, method: str, path: str, *, body: dict[str, Any]) -> None:
            assert method == "POST"
            self.made[f"{path.rpartition('/')[2]}/{body['metadata']['name']}"] = body

    client = Client()
    cluster = Cluster(None, Path(), client, client, client)  # type: ignore[arg-type]
    await recorded.prepare(cluster)
    (source,) = client.made[f"configmaps/{recorded.CONFIG_MAP}"]["data"].values()
    names = {node.name for node in ast.walk(ast.parse(source)) if hasattr(node, "name")}
    assert {"noop", "nap", "recorded"} <= names
    assert client.made["roles/runs"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["runs"],
            "verbs": ["patch"],
        }
    ]
    assert "rolebindings/runs" in client.made
