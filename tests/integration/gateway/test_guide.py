"""The curl client of docs/guides/http.md, as it is printed, against a gateway and an API server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cluster, Kubectl
from tests.e2e.guides import blocks
from tests.integration.gateway.test_access import gateway, installed
from tests.unit.gateway.harness import RunningGateway

__all__ = ["gateway", "installed"]

pytestmark = pytest.mark.cluster


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_client_of_the_guide_submits_finds_and_deletes_a_task(
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    gateway: RunningGateway,
    tmp_path: Path,
) -> None:
    (client,) = (each for each in blocks("http.md", "sh") if each.word == "client")
    role, *_ = blocks("http.md", "yaml")
    kubectl.ok("apply", "-n", namespace, "-f", "-", input=role.text)
    config = tmp_path / "kubeconfig"
    config.write_text(cluster.kubeconfig.read_text())
    environment = {
        **os.environ,
        "PATH": f"{cluster.kubectl.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(config),
        "GATEWAY": gateway.url,
        "NAMESPACE": namespace,
    }
    set_namespace = f"kubectl config set-context --current --namespace={namespace} >&2\n"
    # Nobody runs the Task here: the waits end with it as it is.
    script = client.text.replace("wait=30s", "wait=1s").replace("wait=10s", "wait=1s")
    done = subprocess.run(
        ["bash", "-euc", set_namespace + script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    created, listed, found = _documents(done.stdout)
    assert created["spec"]["payload"] == {"name": "Ada"}
    assert [each["metadata"]["name"] for each in listed["items"]] == ["order-7"]
    assert found["metadata"]["uid"] == created["metadata"]["uid"]
    assert kubectl("get", "tqt", "order-7", "-n", namespace).returncode != 0
    assert len(client.text.splitlines()) <= 10


def _documents(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects that follow one another after what kubectl says."""
    decoder, found = json.JSONDecoder(), []
    rest = text[text.index("{") :]
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found
