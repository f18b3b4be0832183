"""Keeps the state of the native clusters on this machine.

A cluster is a process (the init of its control plane, see `node_init`) and a folder of state. Only
the process counts: a cluster whose init has ended does not exist, whatever its folder says. It
is identified by process id, start time and boot, so that neither a reused process id nor a
reboot can make a dead cluster look alive. The same holds for each of its workers.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster import subnets
from devcluster.commands import DevclusterError
from devcluster.layout import ClusterLayout, NodeLayout, role
from devcluster.paths import STATE
from devcluster.subnets import MAX_WORKERS


@dataclass(frozen=True)
class Record:
    """The stored facts about a started node: its cluster, and its init.

    Checkouts of other versions read it too.
    """

    name: str
    link_number: int
    pid: int
    started: int
    boot: str

    @property
    def alive(self) -> bool:
        """Whether the very process that this record is about still runs."""
        return self.boot == _boot() and start_time(self.pid) == self.started


def check_name(name: str) -> str:
    """Return the name if a cluster can have it.

    Raises:
        DevclusterError: it cannot.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?", name):
        raise DevclusterError(
            f"'{name}' is not a valid cluster name: use up to 40 of a-z, 0-9, '-' and '.', with a "
            "letter or digit at both ends."
        )
    return name


def folder(name: str) -> Path:
    """Return the folder of a cluster's state."""
    return STATE / check_name(name)


def write(node: NodeLayout, pid: int) -> Record:
    """Store the record of a node that has just started."""
    cluster = node.cluster
    record = Record(cluster.name, cluster.number, pid, start_time(pid) or 0, _boot())
    (node.state / "record.json").write_text(json.dumps(asdict(record)))
    return record


def mark_complete(name: str) -> None:
    """Mark a cluster's creation as complete."""
    (folder(name) / "complete").touch()


def find(node: NodeLayout) -> Record | None:
    """Return the record of a node that is alive, or None."""
    try:
        content = json.loads((node.state / "record.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    record = Record(**content)
    return record if record.alive else None


def get_record(node: NodeLayout) -> Record:
    """Return the record of a node that is alive.

    Raises:
        DevclusterError: it is not.
    """
    record = find(node)
    if record is None:
        raise DevclusterError(
            f"Node '{node.name}' does not run.\n"
            "What to do: `make cluster-down`, then `make cluster-up`."
        )
    return record


def find_layout(name: str) -> ClusterLayout | None:
    """Return the layout of a cluster whose folder is there, or None: it may be dead."""
    state = folder(name)
    number = reserved_number(state)
    if number is None:
        return None
    workers = sum((state / role(index)).is_dir() for index in range(1, MAX_WORKERS + 1))
    return ClusterLayout(name, number, state, workers)


def find_complete(name: str) -> ClusterLayout | None:
    """Return the layout of a cluster that runs and was created completely, or None."""
    layout = find_layout(name) if (folder(name) / "complete").exists() else None
    return layout if layout and find(layout.control_plane) else None


def get(name: str) -> ClusterLayout:
    """Return the layout of a cluster.

    Raises:
        DevclusterError: no cluster of this name runs.
    """
    layout = find_complete(name)
    if layout is None:
        raise DevclusterError(
            f"There is no running cluster named '{name}'.\n"
            "What to do: `make cluster-up`, or `kind create cluster --name <name>`."
        )
    return layout


def folders() -> list[Path]:
    """Return the state folders of all clusters, those of dead ones included."""
    if not STATE.exists():
        return []
    return sorted(path for path in STATE.iterdir() if path.is_dir())


def names() -> list[str]:
    """Return the names of the clusters that exist."""
    return [path.name for path in folders() if find_complete(path.name)]


def reserve_number(name: str) -> int:
    """Choose the number of a new cluster and write it into its (new) folder.

    The caller must hold the lock of all clusters, so that two choices differ.
    """
    in_use = [number for number in map(reserved_number, folders()) if number is not None]
    number = subnets.allocate(in_use, subnets.used_on_this_machine())
    folder(name).mkdir(parents=True)
    (folder(name) / "link").write_text(str(number))
    return number


def reserved_number(state: Path) -> int | None:
    """Return the number that a cluster's folder says it has."""
    try:
        return int((state / "link").read_text())
    except (FileNotFoundError, ValueError):
        return None


def child_of(parent: int) -> int | None:
    """Return the process id of a child of a process, or None."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and fields[1] == str(parent):
                return int(entry.name)
    return None


def start_time(pid: int) -> int | None:
    """Return when a living process started, in clock ticks since boot."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the third (the state) on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
