"""The default number of slots, from cgroup files as containers have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskqueue.worker import cpus

V2_HERE = {"proc/self/cgroup": "0::/\n"}
V1_HERE = {"proc/self/cgroup": "11:memory:/pod/a\n4:cpu,cpuacct:/pod/a\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({**V2_HERE, "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({**V2_HERE, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({**V2_HERE, "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({**V2_HERE, "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({**V2_HERE, "sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),
        ({**V2_HERE, "sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
        (
            {
                "proc/self/cgroup": "0::/pod/a\n",
                "sys/fs/cgroup/pod/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/cpu.max": "max 100000\n",
            },
            3,
        ),
        # The host's path, seen from a container without a cgroup namespace of its own.
        (
            {
                "proc/self/cgroup": "0::/../kubepods/x\n",
                "sys/fs/cgroup/cpu.max": "200000 100000\n",
            },
            2,
        ),
        (
            {
                **V1_HERE,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                **V1_HERE,
                "sys/fs/cgroup/cpu/pod/a/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/pod/a/cpu.cfs_period_us": "25000\n",
            },
            2,
        ),
        (
            {
                **V1_HERE,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(cpus, "_usable", lambda: 8)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpus.available_cpus(tmp_path) == expected


def test_here_there_is_at_least_one() -> None:
    assert cpus.available_cpus() >= 1
