"""Facts about the machine that a figure cannot be read without."""

from __future__ import annotations

import asyncio
import os
import platform
from typing import Any

from taskqueue.kubernetes.client import ApiClient
from tests.bench.statistics import significant

#: Above this, the machine is too busy for results that are kept.
NOISY = 0.2
_SAMPLE_SECONDS = 2.0


async def facts(client: ApiClient) -> dict[str, Any]:
    """Measure for two seconds how busy the machine is, before the benchmark."""
    version = await client.get("/version")
    return {
        "cores": cores(),
        "memory_gib": significant(_memory_gib(), 3),
        "busy_before": await _busy(_SAMPLE_SECONDS),
        "kubernetes": version.get("gitVersion", ""),
        "python": platform.python_version(),
    }


def cores() -> int:
    """Return the CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2**30


async def _busy(seconds: float) -> float | None:
    """Return the part of all CPUs that is at work, 0 to 1, or None if it is unknown."""
    try:
        before = _times()
        await asyncio.sleep(seconds)
        after = _times()
    except OSError:
        return None
    spent = [end - start for start, end in zip(before, after, strict=True)]
    idle = spent[3] + spent[4]
    return round(1 - idle / max(sum(spent), 1), 3)


def _times() -> list[int]:
    with open("/proc/stat") as stat:  # a file that never blocks
        return [int(word) for word in stat.readline().split()[1:9]]
