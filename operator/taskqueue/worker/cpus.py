"""How many CPUs this container may use: the default number of slots.

A container's limit is a cgroup quota, which neither ``os.cpu_count`` nor the affinity mask knows.
Read once at start, from files of cgroup v2 or v1; what cannot be read sets no limit.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs available here, at least 1; a fraction of a CPU counts as one.

    Args:
        root: where ``proc`` and ``sys`` are; another folder in tests.
    """
    quota = _quota(root)
    usable = _usable()
    return max(1, usable if quota is None else min(usable, math.ceil(quota)))


def _usable() -> int:
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        return int(count() or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """Return the tightest quota of our cgroups and all above them, in CPUs."""
    mount = root / "sys/fs/cgroup"
    quotas = []
    for controllers, path in _cgroups(root):
        if not controllers:
            quotas += [_quota_v2(folder) for folder in _upwards(mount, path)]
        elif "cpu" in controllers:
            for hierarchy in ("cpu", "cpu,cpuacct"):
                quotas += [_quota_v1(folder) for folder in _upwards(mount / hierarchy, path)]
    return min((quota for quota in quotas if quota), default=None)


def _cgroups(root: Path) -> list[tuple[set[str], str]]:
    """Return controllers and path of each line of /proc/self/cgroup; v2 has no controllers."""
    groups = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            groups.append((set(parts[1].split(",")) - {""}, parts[2]))
    return groups


def _upwards(mount: Path, path: str) -> list[Path]:
    """Return the folders from our cgroup up to the mount.

    In a container with a cgroup namespace the path is ``/``. Without one it is the host's path,
    which is not there below the container's mount: then only the mount itself is read.
    """
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _ratio(quota, period or "100000")


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None for "max", -1 and what is missing: no limit."""
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / of if microseconds > 0 and of > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
