"""The files of this process's cgroups, with the limits and counts of the container.

cgroup v2 or v1, with or without a cgroup namespace. A file that cannot be read counts as empty.
"""

from __future__ import annotations

from pathlib import Path


def cgroups(root: Path) -> list[tuple[set[str], str]]:
    """Return controllers and path of each line of /proc/self/cgroup; v2 has no controllers."""
    groups = []
    for line in read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            groups.append((set(parts[1].split(",")) - {""}, parts[2]))
    return groups


def upwards(mount: Path, path: str) -> list[Path]:
    """Return the folders from our cgroup up to the mount.

    In a container with a cgroup namespace the path is ``/``. Without one it is the host's path,
    which is not there below the container's mount: then only the mount itself is read.
    """
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def read(path: Path) -> str:
    """Return the text of a file; empty when it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
