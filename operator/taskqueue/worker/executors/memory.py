"""Reads how much memory processes hold, and whether the kernel killed one for it. Best effort.

What counts is the resident set: pages of the fork server a child has not written to are counted in
each child too. Without a Linux ``/proc`` nothing is known and nothing is limited.
"""

from __future__ import annotations

import os
from pathlib import Path

from taskqueue.worker.cgroups import cgroups, read, upwards

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1024 * 1024


def resident_mib(pid: int) -> float | None:
    """Return the resident set of a process in MiB; None: it cannot be read."""
    text = read(Path(f"/proc/{pid}/statm"))
    return _mib(text) if text else None


class OwnMemory:
    """Reads the resident set of this process, cheaply enough to do it after every attempt."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def mib(self) -> float | None:
        """Return it in MiB; None: it cannot be read."""
        try:
            return _mib(os.pread(self._file, 128, 0).decode())
        except OSError:
            return None


class OomKills:
    """Counts what the kernel's out-of-memory killer has killed in our cgroup."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._kills = self._count()

    def pop_new(self) -> bool:
        """Return whether it has killed something since the last call."""
        before, self._kills = self._kills, self._count()
        return self._kills > before

    def limit_mib(self) -> int | None:
        """Return the tightest memory limit of our cgroup and those above, in MiB, or None."""
        limits = []
        for folder, version in self._folders():
            name = "memory.max" if version == 2 else "memory.limit_in_bytes"
            text = read(folder / name).strip()
            # cgroup v1 says "no limit" with a number near 2 to the 63rd.
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text) // _MIB)
        return min(limits, default=None)

    def _count(self) -> int:
        # Only of the innermost cgroup: those above count what happens to our neighbours.
        for folder, version in self._folders():
            text = read(folder / ("memory.events" if version == 2 else "memory.oom_control"))
            for line in text.splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.strip().isdigit():
                    return int(value)
        return 0

    def _folders(self) -> list[tuple[Path, int]]:
        mount = self._root / "sys/fs/cgroup"
        folders: list[tuple[Path, int]] = []
        for controllers, path in cgroups(self._root):
            if not controllers:
                folders += [(folder, 2) for folder in upwards(mount, path)]
            elif "memory" in controllers:
                folders += [(folder, 1) for folder in upwards(mount / "memory", path)]
        return folders


def _mib(statm: str) -> float:
    return int(statm.split(" ", 2)[1]) * _PAGE / _MIB
