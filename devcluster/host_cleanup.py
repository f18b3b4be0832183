"""Creates and removes what a node has outside its namespaces.

That is a cgroup in each hierarchy, the outer end of the link (the kernel removes it with the other
end), and the empty folders on which the node's private ones are mounted.
"""

import os
from pathlib import Path

from devcluster.commands import DevclusterError, run
from devcluster.node_settings import PRIVATE_FOLDERS
from devcluster.subnets import Link
from devcluster.waiting import wait_until

_CGROUPS = Path("/sys/fs/cgroup")


def make_mount_points() -> None:
    """Make the folders that a node's own are mounted on."""
    for folder in PRIVATE_FOLDERS:
        Path(folder).mkdir(parents=True, exist_ok=True)


def remove_mount_points() -> None:
    """Remove the mount points that are empty.

    Call it only when no node of this machine runs: removing a folder unmounts what other
    namespaces have mounted on it.
    """
    for folder in PRIVATE_FOLDERS:
        try:
            os.rmdir(folder)
        except OSError:
            continue  # the host uses it


def remove_link(link: Link) -> None:
    """Wait until the kernel has removed the link with the node's end of it."""
    interface = Path("/sys/class/net", link.interface)
    try:
        wait_until(lambda: not interface.exists(), "the network interface to vanish", seconds=5)
    except DevclusterError:
        run(["ip", "link", "delete", link.interface])


def make_cgroups(group: str) -> None:
    """Make a cgroup (`/name`) in every hierarchy."""
    for hierarchy in _hierarchies():
        path = hierarchy / group[1:]
        path.mkdir(exist_ok=True)
        # cgroup v1 starts a cpuset empty, and an empty one can hold no process.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (path / setting).exists() and (hierarchy / setting).exists():
                (path / setting).write_text((hierarchy / setting).read_text())


def remove_cgroups(group: str) -> None:
    """Remove a cgroup and those below it, as their last processes end.

    Raises:
        DevclusterError: one of them keeps a process.
    """
    for hierarchy in _hierarchies():
        top = hierarchy / group[1:]

        def removed(top: Path = top) -> bool:
            for path, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    return False
            return not top.exists()

        wait_until(removed, f"the cgroup {top} to become empty")


def _hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
