"""Creates and deletes a native cluster on this machine.

`create` writes the files, starts `node_init` in new namespaces, links them to the host and waits
until the node is ready. `delete` kills that init: the kernel ends everything in its namespaces, and
`host_cleanup` removes the rest. A failed creation is undone at once; if the creating process was
killed, the next create or delete of that name undoes it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from devcluster import (
    certificates,
    cluster_state,
    host_cleanup,
    kubeconfig,
    node_images,
    node_settings,
)
from devcluster.api import ApiServer
from devcluster.cluster_state import Record
from devcluster.commands import DevclusterError, run
from devcluster.node_settings import Layout
from devcluster.paths import STATE, digest, locked
from devcluster.waiting import wait_until

#: Seconds within which a node has to be ready (on two cores it takes about six).
READY_S = 120.0

#: Lines of each program's log that a failed creation shows.
_LOG_LINES = 8

_CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")


def create(
    name: str,
    *,
    binaries: Path,
    pause_archive: Path,
    feature_gates: Mapping[str, bool],
    say: Callable[[str], None],
) -> None:
    """Create a cluster and return when its node is ready.

    Args:
        name: the cluster's name.
        binaries: the folder of the Kubernetes programs.
        pause_archive: the archive of the image that holds a pod's namespaces.
        feature_gates: Kubernetes feature gates to set.
        say: called with each line of progress.

    Raises:
        DevclusterError: it exists already, or did not start (and was removed again).
    """
    with _lock(name):
        if cluster_state.find_complete(name):
            raise DevclusterError(
                f"Cluster '{name}' exists already.\n"
                f"What to do: use it, or delete it (`kind delete cluster --name {name}`)."
            )
        _remove(name)
        try:
            layout = _lay_out(name, binaries, feature_gates)
            record = _start(layout)
            say(f"node {layout.node_name}: process {record.pid}, {layout.link.node_address}")
            node_images.load_archive(record, pause_archive)
            _wait_until_ready(layout, record)
            cluster_state.mark_complete(name)
        except BaseException:
            say(_last_log_lines(name))
            _remove(name)
            raise


def delete(name: str) -> bool:
    """Delete a cluster, or what remains of one; return whether there was anything."""
    with _lock(name):
        existed = cluster_state.folder(name).exists()
        _remove(name)
        return existed


def admin_kubeconfig(name: str) -> kubeconfig.Document:
    """Return the kubeconfig of a cluster's administrator.

    Raises:
        DevclusterError: there is no such cluster.
    """
    address = cluster_state.get(name).link.node_address
    server = f"https://{address}:{node_settings.API_PORT}"
    return kubeconfig.document(name, server, cluster_state.folder(name) / "pki", "admin")


def _lay_out(name: str, binaries: Path, feature_gates: Mapping[str, bool]) -> Layout:
    """Reserve a link, make the folders and write the files of a new cluster."""
    with _lock_of_all():
        link = cluster_state.reserve_link(name)
        host_cleanup.make_mount_points()
    plugins = next((f for f in _CNI_FOLDERS if Path(f, "ptp").exists()), _CNI_FOLDERS[0])
    layout = Layout(
        name=name,
        link=link,
        state=cluster_state.folder(name),
        binaries=binaries,
        cni_plugins=plugins,
        feature_gates=dict(feature_gates),
    )
    # It has keys, Secrets and the pods' files.
    layout.state.chmod(0o700)
    for path in (layout.config, layout.logs, layout.data):
        path.mkdir()
    for private in node_settings.PRIVATE_FOLDERS:
        (layout.data / private[1:]).mkdir(parents=True)
    certificates.issue(layout.pki, node_settings.identities(layout))
    for file, text in node_settings.files(layout).items():
        (layout.config / file).parent.mkdir(exist_ok=True)
        (layout.config / file).write_text(text)
    for user in node_settings.KUBECONFIG_USERS:
        content = kubeconfig.document(name, layout.server, layout.pki, user)
        kubeconfig.write(layout.config / f"{user}.kubeconfig", content)
    return layout


def _start(layout: Layout) -> Record:
    """Start the node's init in new namespaces, linked to the host."""
    host_cleanup.make_cgroups(layout.cgroup)
    namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    init = [sys.executable, "-I", str(Path(__file__).resolve().with_name("node_init.py"))]
    with (layout.logs / "node.log").open("ab") as log:
        parent = subprocess.Popen(
            ["unshare", *namespaces, *init, str(layout.config / "node.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": node_settings.PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    pid = _init_of(parent)
    _connect(layout, pid)
    record = cluster_state.write(layout.name, layout.link, pid)
    if parent.stdin is None:  # a PIPE was asked for
        raise AssertionError
    # Until it has this line, the node ends if this process does.
    parent.stdin.write(b"network ready\n")
    parent.stdin.close()
    return record


def _init_of(parent: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and parent.poll() is None:
        pid = cluster_state.child_of(parent.pid)
        if pid is not None:
            return pid
        time.sleep(0.02)
    raise DevclusterError(
        "unshare could not create the node's namespaces.\n"
        "What to do: run as root, on a machine or in a container that may create namespaces."
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


def _wait_until_ready(layout: Layout, record: Record) -> None:
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

    def accepts_pods() -> bool:
        # Pods are refused in a namespace until its ServiceAccount is there.
        return bool(api.get("/api/v1/namespaces/default/serviceaccounts/default"))

    waits: dict[str, Callable[[], bool]] = {
        "the API server to be ready": answers,
        "the cluster's own objects": has_objects,
        "the node to be Ready": node_is_ready,
        "the default ServiceAccount": accepts_pods,
    }
    deadline = time.monotonic() + READY_S
    for what, condition in waits.items():
        last_error = "the condition never held"
        while True:
            try:
                if condition():
                    break
            except OSError as error:
                last_error = str(error)
            if time.monotonic() > deadline or not record.alive:
                raise DevclusterError(
                    f"Cluster '{layout.name}': timed out waiting for {what}: {last_error}.\n"
                    "What to do: read the last lines of its logs above."
                )
            time.sleep(0.05)


def _last_log_lines(name: str) -> str:
    lines: list[str] = []
    for log in sorted((cluster_state.folder(name) / "logs").glob("*.log")):
        lines.append(f"--- {log.name}")
        lines += log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(lines)


def _remove(name: str) -> None:
    """Kill a cluster's node if it runs, and remove everything it left on the host."""
    state = cluster_state.folder(name)
    if not state.exists():
        return
    record = cluster_state.find(name)
    if record:
        os.kill(record.pid, signal.SIGKILL)
        wait_until(lambda: not record.alive, f"process {record.pid} of cluster '{name}' to end")
    link = cluster_state.reserved_link(state)
    if link:
        host_cleanup.remove_link(link)
        host_cleanup.remove_cgroups(Layout(name, link, state, state).cgroup)
    with _lock_of_all():
        shutil.rmtree(state)
        if not cluster_state.folders():
            host_cleanup.remove_mount_points()


def _lock(name: str) -> AbstractContextManager[None]:
    """Allow one creation or deletion of a name at a time.

    Names share sixteen locks, because the file of a lock can never be deleted.
    """
    return locked(STATE / f".name-{digest([cluster_state.check_name(name)])[0]}")


def _lock_of_all() -> AbstractContextManager[None]:
    """Allow one process at a time to reserve and remove what clusters share."""
    return locked(STATE / ".all")
