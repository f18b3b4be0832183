"""Prepares the machine for a native node: root, packages, programs, images.

Each step runs once; with a full cache this needs milliseconds.
"""

import os
import sys
from collections.abc import Callable

from devcluster import base_images, packages, programs
from devcluster.commands import DevclusterError
from devcluster.progress import Steps


def require_root() -> None:
    """Fail early without root on Linux.

    Raises:
        DevclusterError: this is not Linux, or the user is not root.
    """
    if sys.platform != "linux":
        raise DevclusterError(
            "A native node needs Linux.\n"
            "What to do: start a Docker engine, so that kind runs the node."
        )
    if os.geteuid() != 0:
        raise DevclusterError(
            "A native node needs namespaces, mounts and network links: only root can create them.\n"
            "What to do: run this as root, or start a Docker engine, so that kind runs the node."
        )


def prepare_node(steps: Steps) -> None:
    """Install packages and build the Kubernetes programs, where they are missing."""
    require_root()
    work: dict[str, Callable[[], None]] = {}
    if packages.missing():
        work["Debian packages"] = packages.install
    if not programs.built():
        work["Kubernetes programs"] = lambda: programs.build(steps.say)
    steps.run_all(work)
    base_images.pause_archive()
