"""examples/go-worker in the cluster: its image, and its workers beside a TaskQueue's pool."""

from __future__ import annotations

from pathlib import Path

import yaml
from pytest_kind import KindCluster

from devcluster import build_image, load_images
from tests.conformance import go
from tests.e2e.api import Body
from tests.e2e.harness import BROKER_HOST, Harness

IMAGE = "taskqueue-go-worker:dev"
LABEL = "app=go-worker"


def put_image(
    cluster: KindCluster, folder: Path, *, image: str = IMAGE, module: Path = go.MODULE
) -> None:
    """Build the image and put it into the cluster, as the example's README says."""
    for name in ("worker", "producer"):
        go.build(name, folder, module)
    build_image(image, module / "Containerfile", folder)
    load_images(cluster, [image])


def manifest(name: str) -> Body:
    """Return a manifest of the example."""
    body: Body = yaml.safe_load((go.MODULE / name).read_text())
    return body


def uri_secret(harness: Harness) -> None:
    """Put the Secret in place that the manifests name."""
    rabbitmq = harness.rabbitmq
    uri = f"amqp://{rabbitmq.username}:{rabbitmq.password}@{BROKER_HOST}:5672/"
    harness.secret("rabbit", uri=uri, host=None, username=None, password=None)


def deploy_beside(harness: Harness, queue: str) -> None:
    """Have a Go worker read a TaskQueue beside its own pool."""
    body = manifest("deployment.yaml")
    body["metadata"]["name"] = f"go-worker-{queue}"
    for one in (
        body["spec"]["selector"]["matchLabels"],
        body["spec"]["template"]["metadata"]["labels"],
    ):
        one["queue"] = queue
    container = body["spec"]["template"]["spec"]["containers"][0]
    variable = next(one for one in container["env"] if one["name"] == "TASKQUEUE_QUEUE")
    variable["value"] = queue
    harness.api.request("POST", f"/apis/apps/v1/namespaces/{harness.namespace}/deployments", body)


def ready_pods(harness: Harness, queue: str) -> list[str]:
    """Return the names of the Go workers beside a pool that are ready and not on their way out."""
    found = harness.api.get(harness.core("pods"), labelSelector=f"{LABEL},queue={queue}")
    return [
        pod["metadata"]["name"]
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"]
        and any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in pod["status"].get("conditions", ())
        )
    ]
