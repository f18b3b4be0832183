"""Puts an operator of any commit into a cluster, with that commit's manifests and CRDs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import yaml
from pytest_kind import KindCluster

from devcluster import images
from devcluster.builders import builder
from devcluster.cluster import load_images
from devcluster.paths import CHECKOUT
from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.faults.rows.site import Installation

_BROKER = CHECKOUT / "devcluster" / "rabbitmq"
_READY = "--timeout=180s"


def install(cluster: KindCluster, image: str, tree: Path) -> Installation:
    """Deploy RabbitMQ, and this image of the operator with the manifests of its sources."""
    load_images(cluster, [images.RABBITMQ, image])
    place = Cluster(Path(cluster.kubeconfig_path), Path(cluster.kubectl_path))
    kubectl = Kubectl(place)
    kubectl.ok("apply", "--server-side", "--force-conflicts", "-k", str(_BROKER))
    manifests = list(yaml.safe_load_all(kubectl.ok("kustomize", str(tree / "manifests" / "base"))))
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            template = manifest["spec"]["template"]
            template["spec"]["containers"][0]["image"] = image
            annotations = {"taskqueue.dev/image-content": builder().label(image)}
            template["metadata"]["annotations"] = annotations
    text = yaml.safe_dump_all(manifests)
    arguments = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    if kubectl(*arguments, input=text).returncode:  # the CRDs are not established yet
        kubectl.ok(*arguments, input=text)
    kubectl.ok("rollout", "status", "-n", "rabbitmq", "statefulset/rabbitmq", _READY)
    settle(kubectl)
    api = Api(place.kubeconfig)
    return Installation(api, kubectl, _rabbitmq(kubectl), image, place.kubeconfig)


def settle(kubectl: Kubectl) -> None:
    """Wait until the operator is ready; start it again if a row has left it otherwise."""
    workload = ("-n", "taskqueue-system", "deployment/taskqueue-operator")
    if kubectl("rollout", "status", *workload, "--timeout=60s").returncode:
        kubectl.ok("rollout", "restart", *workload)
        kubectl.ok("rollout", "status", *workload, _READY)


def _rabbitmq(kubectl: Kubectl) -> RabbitMQ:
    path = '{.items[0].status.addresses[?(@.type=="InternalIP")].address}'
    secret = json.loads(kubectl.ok("get", "secret", "rabbitmq", "-n", "rabbitmq", "-o", "json"))
    login = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    return RabbitMQ(
        host=kubectl.ok("get", "nodes", "-o", f"jsonpath={path}"),
        port=30672,
        management_port=31672,
        username=login["username"],
        password=login["password"],
    )
