"""What has to be on the machine before a node can start, fetched side by side.

Everything here is done once: with a full cache it takes milliseconds.
"""

import os
import sys

from devcluster import base_images, packages, programs
from devcluster.commands import DevclusterError
from devcluster.progress import Steps


def require_root() -> None:
    """Refuse early what only root can do.

    Raises:
        DevclusterError: this is not root on Linux.
    """
    if sys.platform != "linux":
        raise DevclusterError(
            "A native node needs Linux.\nWhat to do: start a Docker engine; kind is used then."
        )
    if os.geteuid() != 0:
        raise DevclusterError(
            "A native node makes namespaces, mounts and network links, which only root may.\n"
            "What to do: run this as root, or start a Docker engine; kind is used then."
        )


def prepare_node(steps: Steps) -> None:
    """Install packages and build the Kubernetes programs, where they are missing."""
    require_root()
    work = {}
    if packages.missing():
        work["Debian packages"] = packages.install
    if not programs.built():
        work["Kubernetes programs"] = lambda: programs.build(steps.say)
    steps.run_all(work)
    base_images.pause_archive()
