"""Deploys RabbitMQ, the CRDs and the operator of this checkout to a development cluster.

An image keeps its tag when its content changes, so the pod template has the hash of the content: a
changed image rolls the pods, an unchanged one is not loaded.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pytest_kind import KindCluster

from devcluster import images
from devcluster.builders import builder
from devcluster.cluster import load_images
from devcluster.commands import run
from devcluster.paths import CHECKOUT
from devcluster.progress import Steps

#: Annotation of a pod template with the content of its image.
CONTENT_ANNOTATION = "taskqueue.dev/image-content"

#: How long to wait until a part is ready, in seconds.
_READY_S = 180


@dataclass(frozen=True)
class _Part:
    """A part of the deployment: its manifests, the workload to wait for, and its image."""

    manifests: Path
    namespace: str
    workload: str
    image: str


_PARTS = (
    _Part(
        CHECKOUT / "devcluster" / "rabbitmq", "rabbitmq", "statefulset/rabbitmq", images.RABBITMQ
    ),
    _Part(
        CHECKOUT / "devcluster" / "operator",
        "taskqueue-system",
        "deployment/taskqueue-operator",
        images.OPERATOR,
    ),
)


def deploy(cluster: KindCluster, *, steps: Steps | None = None) -> None:
    """Deploy RabbitMQ and the operator of this checkout, and wait until both are ready.

    Args:
        cluster: from `devcluster.cluster.open_cluster`, which builds the images.
        steps: writes the progress (default: to standard error).

    Raises:
        DevclusterError: an image cannot be built, or a part does not become ready; the error says
            how to find out why.
    """
    progress = steps or Steps()
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(_bring_up, cluster, part, progress) for part in _PARTS]:
            done.result()


def _bring_up(cluster: KindCluster, part: _Part, steps: Steps) -> None:
    content = builder().label(part.image)
    if _running_content(cluster, part) != content:
        load_images(cluster, [part.image], steps=steps)
    _kubectl(cluster, ["apply", "--server-side", "--force-conflicts", "-k", str(part.manifests)])
    note = {"spec": {"template": {"metadata": {"annotations": {CONTENT_ANNOTATION: content}}}}}
    within = [f"--namespace={part.namespace}"]
    _kubectl(cluster, [*within, "patch", part.workload, "--patch", json.dumps(note)])
    _kubectl(
        cluster,
        [*within, "rollout", "status", part.workload, f"--timeout={_READY_S}s"],
        hint=f"run: kubectl --kubeconfig {cluster.kubeconfig_path} -n {part.namespace} "
        f"describe pods; kubectl ... logs {part.workload}",
    )
    steps.say(f"{part.workload} is ready")


def _running_content(cluster: KindCluster, part: _Part) -> str:
    path = "{.spec.template.metadata.annotations." + CONTENT_ANNOTATION.replace(".", r"\.") + "}"
    return _kubectl(
        cluster,
        [
            f"--namespace={part.namespace}",
            "get",
            part.workload,
            "--ignore-not-found",
            f"--output=jsonpath={path}",
        ],
    )


def _kubectl(cluster: KindCluster, arguments: Sequence[str], *, hint: str = "") -> str:
    command = [cluster.kubectl_path, f"--kubeconfig={cluster.kubeconfig_path}", *arguments]
    return run(command, hint=hint)
