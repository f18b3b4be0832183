"""How many CPUs this container may use: the default number of slots.

A container's limit is a cgroup quota, which neither ``os.cpu_count`` nor the affinity mask shows.
It is read once at start, from files of cgroup v2 or v1. A file that cannot be read sets no limit.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from taskqueue.worker.cgroups import cgroups, read, upwards


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
    for controllers, path in cgroups(root):
        if not controllers:
            quotas += [_quota_v2(folder) for folder in upwards(mount, path)]
        elif "cpu" in controllers:
            for hierarchy in ("cpu", "cpu,cpuacct"):
                quotas += [_quota_v1(folder) for folder in upwards(mount / hierarchy, path)]
    return min((quota for quota in quotas if quota), default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = read(folder / "cpu.max").strip().partition(" ")
    return _ratio(quota, period or "100000")


def _quota_v1(folder: Path) -> float | None:
    return _ratio(read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None for "max", -1 and what is missing: no limit."""
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / of if microseconds > 0 and of > 0 else None
