"""CPU time of the cluster's processes, by kind, read from /proc.

A node, native or a kind container, is a tree of processes below the init of its PID namespace, and
the host sees them all. The node is found by its API server. Where /proc does not show it (another
operating system, an API server elsewhere) there is nothing to report, and the report says so.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")

#: Kinds of processes by the name of the program, in the order of the table.
_PROGRAMS = {
    "kube-apiserver": "kube-apiserver",
    "etcd": "etcd",
    "beam.smp": "rabbitmq",
    "kubelet": "kubelet",
    "kube-controller-manager": "kube-controller-manager",
    "kube-scheduler": "kube-scheduler",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
}
CLIENT = "bench client"
OTHER = "rest of the cluster"


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    command: tuple[str, ...]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU seconds used so far: by process, and by the whole machine."""

    by_process: Mapping[int, tuple[str, float]]
    machine: float


def kind(command: Sequence[str]) -> str:
    """Return what a process of the cluster is, from its command line."""
    if not command:
        return OTHER
    for part, name in (("operator", "operator"), ("worker", "workers")):
        if "taskqueue" in command and part in command:
            return name
    return _PROGRAMS.get(command[0].rsplit("/", 1)[-1], OTHER)


def find_node(processes: Mapping[int, Process], api_host: str) -> int | None:
    """Return the init of the node whose API server is at ``api_host``, or None.

    The API server is known by its address; where a port is forwarded to it, it has another, and
    counts when it is the only one.
    """
    servers = [p for p in processes.values() if kind(p.command) == "kube-apiserver"]
    addressed = [s for s in servers if f"--advertise-address={api_host}" in s.command]
    chosen = addressed or servers
    if len(chosen) != 1:
        return None
    namespace = _pid_namespace(chosen[0].pid)
    top = chosen[0]
    while (above := processes.get(top.parent)) and _pid_namespace(above.pid) == namespace:
        top = above
    return top.pid


def descendants(processes: Mapping[int, Process], root: int) -> set[int]:
    """Return the process ids of a tree, its root included."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process.pid)
    tree, waiting = set[int](), [root]
    while waiting:
        pid = waiting.pop()
        tree.add(pid)
        waiting += children[pid]
    return tree


def sample(api_host: str) -> CpuSample | None:
    """Read the CPU time of the cluster's processes and of this one, or None: see the module."""
    try:
        processes = _read_all()
        machine = _machine_busy()
    except OSError:
        return None
    node = find_node(processes, api_host)
    if node is None:
        return None
    used = {
        pid: (kind(processes[pid].command), processes[pid].cpu_seconds)
        for pid in descendants(processes, node)
        if pid in processes
    }
    own = processes.get(os.getpid())
    if own is not None:
        used[own.pid] = (CLIENT, own.cpu_seconds)
    return CpuSample(used, machine)


def of_kind(name: str) -> list[int]:
    """Return the ids of all processes of a kind; none where /proc does not show them."""
    try:
        return [pid for pid, process in _read_all().items() if kind(process.command) == name]
    except OSError:
        return []


def of_trees(roots: Iterable[int]) -> float:
    """Return the CPU seconds that these processes and all below them have used so far.

    It is 0 where /proc does not have it.
    """
    try:
        processes = _read_all()
    except OSError:
        return 0.0
    pids = {pid for root in roots for pid in descendants(processes, root)}
    return sum(processes[pid].cpu_seconds for pid in pids if pid in processes)


def between(before: CpuSample, after: CpuSample) -> dict[str, float]:
    """Return the CPU seconds used from one sample to the other, by kind, most first.

    What is left of the machine's time belongs to processes outside of the cluster, to the kernel
    and to processes that came and went.
    """
    used: defaultdict[str, float] = defaultdict(float)
    for pid, (name, seconds) in after.by_process.items():
        start = before.by_process.get(pid)
        used[name] += seconds - (start[1] if start and start[0] == name else 0.0)
    known = dict(sorted(used.items(), key=lambda entry: -entry[1]))
    known["everything else on the machine"] = max(
        after.machine - before.machine - sum(known.values()), 0.0
    )
    return known


def parse_stat(pid: int, stat: str, command: bytes) -> Process:
    """Read /proc/<pid>/stat; the name in it may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        command=tuple(part.decode(errors="replace") for part in command.split(b"\0") if part),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
    )


def _read_all() -> dict[int, Process]:
    processes = {}
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(errors="replace")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        pid = int(folder.name)
        processes[pid] = parse_stat(pid, stat, command)
    return processes


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(_PROC / str(pid) / "ns" / "pid")
    except OSError:
        return ""


def _machine_busy() -> float:
    """CPU seconds the machine has worked since it started: neither idle nor waiting for a disk."""
    total = (_PROC / "stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = map(int, total)
    return (user + nice + system + irq + softirq) / _TICKS
