"""A real Kubernetes cluster on one machine, with a Docker engine or without.

    from devcluster import build_image, load_images, open_cluster

    cluster = open_cluster()                    # a pytest_kind.KindCluster that works
    load_images(cluster)                        # taskqueue-operator:dev, taskqueue-rabbitmq:dev
    cluster.kubectl("apply", "-k", "devcluster/rabbitmq")

The names below are all there is to know from outside. They are imported when first used, because
the `kind` command of this package must start without pytest-kind.
"""

from typing import TYPE_CHECKING, Any

from devcluster.commands import DevclusterError
from devcluster.paths import DEFAULT_NAME, KUBECONFIG

if TYPE_CHECKING:
    from devcluster.cluster import delete_cluster, load_images, open_cluster, prepare
    from devcluster.images import OPERATOR, RABBITMQ, build_image
    from devcluster.wheels import download as download_wheels

__all__ = [
    "DEFAULT_NAME",
    "KUBECONFIG",
    "OPERATOR",
    "RABBITMQ",
    "DevclusterError",
    "build_image",
    "delete_cluster",
    "download_wheels",
    "load_images",
    "open_cluster",
    "prepare",
]

_HOME = {
    "OPERATOR": ("devcluster.images", "OPERATOR"),
    "RABBITMQ": ("devcluster.images", "RABBITMQ"),
    "build_image": ("devcluster.images", "build_image"),
    "delete_cluster": ("devcluster.cluster", "delete_cluster"),
    "download_wheels": ("devcluster.wheels", "download"),
    "load_images": ("devcluster.cluster", "load_images"),
    "open_cluster": ("devcluster.cluster", "open_cluster"),
    "prepare": ("devcluster.cluster", "prepare"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'devcluster' has no attribute '{name}'")
    import importlib

    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
