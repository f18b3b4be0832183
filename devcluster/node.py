"""One native cluster on this machine: started, found, deleted.

A cluster is a process (the init of its namespaces, see `node_init`) and a folder of state. The
process is the truth: a cluster whose init is gone is not listed, and what it left is removed by
the next create or delete of its name. Identified is it by process id, start time and boot, so
that neither a reused process id nor a reboot can make a dead cluster look alive.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster import certificates, kubeconfig, node_settings, subnets
from devcluster.api import ApiServer
from devcluster.commands import DevclusterError, run
from devcluster.locations import STATE, locked
from devcluster.node_settings import Layout

#: Seconds within which a node of built programs has to be ready (it takes about ten).
READY_S = 120.0

#: Seconds that the kernel gets to take a killed node's namespaces down.
GONE_S = 30.0

_CGROUPS = Path("/sys/fs/cgroup")
_CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")


@dataclass(frozen=True)
class Record:
    """What is written down about a running cluster."""

    name: str
    link: int
    pid: int
    started: int
    boot: str

    @property
    def alive(self) -> bool:
        """Whether the very process that this record is about still runs."""
        return self.boot == _boot() and _start_time(self.pid) == self.started


def check_name(name: str) -> str:
    """Return the name if a cluster can have it.

    Raises:
        DevclusterError: it cannot.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?", name):
        raise DevclusterError(
            f"'{name}' is no name for a cluster: up to 40 of a-z, 0-9, '-' and '.', with a letter "
            "or digit at both ends."
        )
    return name


def folder(name: str) -> Path:
    """Return the folder of a cluster's state."""
    return STATE / check_name(name)


def find(name: str) -> Record | None:
    """Return the record of a cluster that is alive, or None."""
    try:
        content = json.loads((folder(name) / "record.json").read_text())
    except FileNotFoundError:
        return None
    record = Record(**content)
    return record if record.alive else None


def names() -> list[str]:
    """Return the names of the clusters that are alive."""
    if not STATE.exists():
        return []
    return [path.name for path in sorted(STATE.iterdir()) if path.is_dir() and find(path.name)]


def layout_of(
    name: str, link: subnets.Link, binaries: Path, feature_gates: Mapping[str, bool]
) -> Layout:
    """Return the layout of a cluster on this machine."""
    plugins = next((f for f in _CNI_FOLDERS if Path(f, "ptp").exists()), _CNI_FOLDERS[0])
    return Layout(
        name=name,
        link=link,
        state=folder(name),
        binaries=binaries,
        cni_plugins=plugins,
        feature_gates=dict(feature_gates),
    )


def create(
    name: str,
    *,
    binaries: Path,
    pause_archive: Path,
    feature_gates: Mapping[str, bool],
    say: Callable[[str], None],
) -> None:
    """Create a cluster and return when its node is ready.

    Raises:
        DevclusterError: it exists already, or did not come up (nothing of it is left then).
    """
    with locked(STATE / f".{check_name(name)}"):
        if find(name):
            raise DevclusterError(
                f"A cluster named '{name}' exists already.\n"
                f"What to do: use it, or delete it (`kind delete cluster --name {name}`)."
            )
        _remove_remains(name)
        try:
            with locked(STATE / ".links"):
                taken = [_recorded_link(path) for path in STATE.iterdir() if path.is_dir()]
                used = subnets.used_on_this_machine()
                link = subnets.allocate([n for n in taken if n is not None], used)
                layout = layout_of(name, link, binaries, feature_gates)
                _write_files(layout)
                record = _start(layout)
            say(f"node {layout.node_name}: process {record.pid}, address {link.node_address}")
            import_archive(name, pause_archive)
            _wait_until_ready(layout)
        except BaseException:
            say(_logs_of(name))
            _remove_remains(name)
            raise


def delete(name: str) -> bool:
    """Delete a cluster, or what is left of one; tell whether there was anything."""
    with locked(STATE / f".{check_name(name)}"):
        existed = folder(name).exists()
        _remove_remains(name)
        return existed


def admin_kubeconfig(name: str) -> kubeconfig.Document:
    """Return the kubeconfig of a running cluster's administrator.

    Raises:
        DevclusterError: there is no such cluster.
    """
    record = _get(name)
    link = subnets.Link(record.link)
    server = f"https://{link.node_address}:{node_settings.API_PORT}"
    return kubeconfig.document(name, server, folder(name) / "pki", "admin")


def load_image(name: str, archive: Path) -> bool:
    """Load an image's archive unless this cluster has loaded the very same; tell which.

    An archive's name contains the image's id, so the same name is the same image.
    """
    _get(name)
    loaded = folder(name) / "loaded" / archive.name
    if loaded.exists():
        return False
    import_archive(name, archive)
    loaded.parent.mkdir(exist_ok=True)
    for other in loaded.parent.glob(f"{archive.name.rpartition('-')[0]}-*"):
        other.unlink()
    loaded.touch()
    return True


def import_archive(name: str, archive: Path) -> None:
    """Load an image archive into a running cluster's containerd.

    Raises:
        DevclusterError: there is no such cluster, or the archive is none.
    """
    socket = Path(f"/proc/{_get(name).pid}/root/run/containerd/containerd.sock")
    deadline = time.monotonic() + 20
    while not socket.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    ctr = ["ctr", f"--address={socket}", "--namespace=k8s.io"]
    run([*ctr, "images", "import", archive], hint=f"see {folder(name)}/logs/containerd.log")


def _get(name: str) -> Record:
    record = find(name)
    if record is None:
        raise DevclusterError(
            f"There is no running cluster named '{name}'.\n"
            "What to do: `make cluster-up`, or `kind create cluster --name <name>`."
        )
    return record


def _write_files(layout: Layout) -> None:
    for path in (layout.config, layout.logs, layout.data):
        path.mkdir(parents=True, exist_ok=True)
    # Keys and Secrets are in there, and the pods' files.
    layout.state.chmod(0o700)
    (layout.state / "link").write_text(str(layout.link.number))
    for private in node_settings.PRIVATE_FOLDERS:
        (layout.data / private[1:]).mkdir(parents=True)
        Path(private).mkdir(parents=True, exist_ok=True)
    certificates.issue(layout.pki, node_settings.identities(layout))
    for name, content in node_settings.files(layout).items():
        (layout.config / name).parent.mkdir(exist_ok=True)
        (layout.config / name).write_text(content)
    for user in node_settings.KUBECONFIG_USERS:
        content = kubeconfig.document(layout.name, layout.server, layout.pki, user)
        kubeconfig.write(layout.config / f"{user}.kubeconfig", content)


def _start(layout: Layout) -> Record:
    _make_cgroups(layout.cgroup)
    init = Path(__file__).resolve().with_name("node_init.py")
    with (layout.logs / "node.log").open("ab") as log:
        parent = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            + [sys.executable, "-I", str(init), str(layout.config / "node.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": node_settings.PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    pid = _only_child(parent)
    _connect(layout, pid)
    record = Record(layout.name, layout.link.number, pid, _start_time(pid) or 0, _boot())
    (layout.state / "record.json").write_text(json.dumps(asdict(record)))
    if parent.stdin is None:  # a PIPE was asked for
        raise AssertionError
    # Until this line the node would end by itself if this process did.
    parent.stdin.write(b"network ready\n")
    parent.stdin.close()
    return record


def _only_child(parent: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and parent.poll() is None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                fields = _stat(int(entry.name))
                if fields and fields[1] == str(parent.pid):
                    return int(entry.name)
        time.sleep(0.02)
    raise DevclusterError(
        "The namespaces of the node could not be made (unshare).\n"
        "What to do: run as root, on a machine or in a container that may make namespaces."
    )


def _connect(layout: Layout, pid: int) -> None:
    link = layout.link
    run(
        ["ip", "-batch", "-"],
        stdin=f"link add {link.interface} type veth peer name eth0 netns {pid}\n"
        f"address add {link.host_address}/{link.prefix_length} dev {link.interface}\n"
        f"link set {link.interface} up\n",
    )
    run(
        ["nsenter", f"--target={pid}", "--net", "ip", "-batch", "-"],
        stdin="link set lo up\n"
        f"address add {link.node_address}/{link.prefix_length} dev eth0\n"
        "link set eth0 up\n"
        f"route add default via {link.host_address}\n",
    )


def _wait_until_ready(layout: Layout) -> None:
    api = ApiServer(layout.server, layout.pki)

    def answers() -> bool:
        return api.get_text("/readyz") == "ok"

    def has_objects() -> bool:
        for collection, content in node_settings.objects(layout):
            api.create(collection, content)
        layout.objects_created.touch()
        return True

    def node_is_ready() -> bool:
        conditions = api.get(f"/api/v1/nodes/{layout.node_name}")["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def takes_pods() -> bool:
        # Pods are refused in a namespace until its ServiceAccount is there.
        return bool(api.get("/api/v1/namespaces/default/serviceaccounts/default"))

    waits: dict[str, Callable[[], bool]] = {
        "the API server to be ready": answers,
        "the cluster's own objects": has_objects,
        "the node to be Ready": node_is_ready,
        "the default ServiceAccount": takes_pods,
    }
    deadline = time.monotonic() + READY_S
    for what, condition in waits.items():
        problem = "it never was"
        while True:
            try:
                if condition():
                    break
            except OSError as error:
                problem = str(error)
            if time.monotonic() > deadline or not find(layout.name):
                raise DevclusterError(
                    f"Cluster '{layout.name}': waited for {what}, in vain: {problem}.\n"
                    "What to do: look at the last lines of its logs above."
                )
            time.sleep(0.05)


def _logs_of(name: str) -> str:
    """Return the last lines of each of a node's logs."""
    logs = folder(name) / "logs"
    lines: list[str] = []
    for log in sorted(logs.glob("*.log")):
        lines.append(f"--- {log.name}")
        lines += log.read_text(errors="replace").splitlines()[-8:]
    return "\n".join(lines)


def _remove_remains(name: str) -> None:
    """Kill a cluster's node if it lives, and remove everything it left on the host."""
    state = folder(name)
    if not state.exists():
        return
    record = find(name)
    if record:
        os.kill(record.pid, signal.SIGKILL)
        _until(lambda: not record.alive, f"process {record.pid} of cluster '{name}' to end")
    number = _recorded_link(state)
    if number is not None:
        _remove_link(subnets.Link(number))
    _remove_cgroups(layout_of(name, subnets.Link(number or 0), state, {}).cgroup)
    shutil.rmtree(state)
    if not names():
        _remove_mount_points()


def _remove_link(link: subnets.Link) -> None:
    """Wait until the kernel has taken the link away with the node's end of it."""
    interface = Path("/sys/class/net", link.interface)
    try:
        _until(lambda: not interface.exists(), f"network interface {link.interface} to vanish", 5)
    except DevclusterError:
        run(["ip", "link", "delete", link.interface])


def _remove_mount_points() -> None:
    for private in node_settings.PRIVATE_FOLDERS:
        try:
            os.rmdir(private)
        except OSError:
            continue  # the host's own, and in use


def _make_cgroups(group: str) -> None:
    for hierarchy in _hierarchies():
        path = hierarchy / group[1:]
        path.mkdir(exist_ok=True)
        # cgroup v1 starts a cpuset empty, and an empty one can hold no process.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (path / setting).exists() and (hierarchy / setting).exists():
                (path / setting).write_text((hierarchy / setting).read_text())


def _remove_cgroups(group: str) -> None:
    for hierarchy in _hierarchies():
        top = hierarchy / group[1:]

        def emptied(top: Path = top) -> bool:
            for path, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    return False  # its last process is still ending
            return not top.exists()

        _until(emptied, f"cgroup {top} to become empty")


def _hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [p for p in _CGROUPS.iterdir() if p.is_dir() and not p.is_symlink()]


def _recorded_link(state: Path) -> int | None:
    try:
        return int((state / "link").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _until(condition: Callable[[], bool], what: str, seconds: float = GONE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DevclusterError(f"Waited {seconds:.0f} s for {what}, in vain.")
        time.sleep(0.02)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the third (the state) on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _start_time(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None
