"""Creates and deletes a native cluster on this machine.

`create` writes the files, starts the nodes and waits until all are ready. `delete` kills the init
of the control plane: the kernel ends everything in its namespaces, the workers included, and
`host_cleanup` removes the rest. A failed creation is undone at once; if the creating process was
killed, the next create or delete of that name undoes it.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from devcluster import (
    certificates,
    cluster_state,
    control_plane_settings,
    host_cleanup,
    kubeconfig,
    node,
    node_images,
    node_settings,
)
from devcluster.api import ApiServer
from devcluster.commands import DevclusterError
from devcluster.layout import ClusterLayout, NodeLayout, Software
from devcluster.paths import STATE, digest, locked

#: Seconds within which the nodes have to be ready (on two cores it takes about six).
READY_S = 120.0

#: Lines of each program's log that a failed creation shows.
_LOG_LINES = 8

_CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")


def create(
    name: str,
    *,
    workers: int = 0,
    binaries: Path,
    pause_archive: Path,
    feature_gates: Mapping[str, bool],
    say: Callable[[str], None],
) -> None:
    """Create a cluster and return when its nodes are ready.

    Args:
        name: the cluster's name.
        workers: how many nodes of role `worker` it has.
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
            plugins = next((f for f in _CNI_FOLDERS if Path(f, "ptp").exists()), _CNI_FOLDERS[0])
            cluster = _lay_out(name, workers, Software(binaries, plugins, dict(feature_gates)))
            for one in cluster.nodes:
                record = node.start(one)
                say(f"node {one.name}: process {record.pid}, {one.link.node_address}")
            for one in cluster.nodes:
                node_images.load_archive(one, pause_archive)
            _wait_until_ready(cluster)
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
    cluster = cluster_state.get(name)
    return kubeconfig.document(name, cluster.server, cluster.pki, "admin")


def stop_worker(name: str, node_name: str) -> None:
    """Kill a worker node as a loss of power does: its programs and containers end at once.

    Raises:
        DevclusterError: the cluster has no such worker.
    """
    with _lock(name):
        node.stop(_worker(name, node_name))


def start_worker(name: str, node_name: str) -> None:
    """Start a stopped worker node again, with the disk that it had.

    Raises:
        DevclusterError: the cluster has no such worker, or it runs already.
    """
    with _lock(name):
        worker = _worker(name, node_name)
        if cluster_state.find(worker):
            raise DevclusterError(
                f"Node '{node_name}' runs already.\nWhat to do: stop it first (`stop_worker`)."
            )
        node.start(worker)


def _worker(name: str, node_name: str) -> NodeLayout:
    workers = {one.name: one for one in cluster_state.get(name).nodes if not one.is_control_plane}
    if node_name not in workers:
        raise DevclusterError(
            f"Cluster '{name}' has no worker node '{node_name}'.\n"
            f"What to do: name one of its workers ({', '.join(workers) or 'it has none'})."
        )
    return workers[node_name]


def _lay_out(name: str, workers: int, software: Software) -> ClusterLayout:
    """Reserve addresses, make the folders and write the files of a new cluster."""
    with _lock_of_all():
        number = cluster_state.reserve_number(name)
        host_cleanup.make_mount_points()
    cluster = ClusterLayout(name, number, cluster_state.folder(name), workers)
    # It has keys, Secrets and the pods' files.
    cluster.state.chmod(0o700)
    certificates.issue(cluster.pki, control_plane_settings.identities(cluster))
    for one in cluster.nodes:
        _lay_out_node(one, software)
    return cluster


def _lay_out_node(one: NodeLayout, software: Software) -> None:
    for path in (one.config, one.logs, one.data):
        path.mkdir(parents=True)
    for private in node_settings.PRIVATE_FOLDERS:
        (one.data / private[1:]).mkdir(parents=True)
    for file, text in control_plane_settings.files(one, software).items():
        (one.config / file).parent.mkdir(exist_ok=True)
        (one.config / file).write_text(text)
    cluster = one.cluster
    for user, identity in control_plane_settings.kubeconfig_users(one).items():
        content = kubeconfig.document(cluster.name, cluster.server, cluster.pki, identity)
        kubeconfig.write(one.config / f"{user}.kubeconfig", content)


def _wait_until_ready(cluster: ClusterLayout) -> None:
    api = ApiServer(cluster.server, cluster.pki)

    def answers() -> bool:
        return api.get_text("/readyz") == "ok"

    def has_objects() -> bool:
        for collection, content in control_plane_settings.objects(cluster):
            api.create(collection, content)
        cluster.objects_created.touch()
        return True

    def is_described(one: NodeLayout) -> bool:
        description = control_plane_settings.node_description(one)
        api.patch(f"/api/v1/nodes/{one.name}", description)
        return True

    def is_ready(one: NodeLayout) -> bool:
        conditions = api.get(f"/api/v1/nodes/{one.name}")["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def accepts_pods() -> bool:
        # Pods are refused in a namespace until its ServiceAccount is there.
        return bool(api.get("/api/v1/namespaces/default/serviceaccounts/default"))

    waits: dict[str, Callable[[], bool]] = {
        "the API server to be ready": answers,
        "the cluster's own objects": has_objects,
    }
    for one in cluster.nodes:
        waits[f"node {one.name} to register"] = partial(is_described, one)
        waits[f"node {one.name} to be Ready"] = partial(is_ready, one)
    waits["the default ServiceAccount"] = accepts_pods
    deadline = time.monotonic() + READY_S
    for what, condition in waits.items():
        last_error = "the condition never held"
        while True:
            try:
                if condition():
                    break
            except OSError as error:
                last_error = str(error)
            if time.monotonic() > deadline or not all(map(cluster_state.find, cluster.nodes)):
                raise DevclusterError(
                    f"Cluster '{cluster.name}': timed out waiting for {what}: {last_error}.\n"
                    "What to do: read the last lines of its logs above."
                )
            time.sleep(0.05)


def _last_log_lines(name: str) -> str:
    lines: list[str] = []
    state = cluster_state.folder(name)
    for log in sorted(state.glob("**/logs/*.log")):
        lines.append(f"--- {log.relative_to(state)}")
        lines += log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(lines)


def _remove(name: str) -> None:
    """Kill a cluster's nodes if they run, and remove everything they left on the host."""
    state = cluster_state.folder(name)
    if not state.exists():
        return
    cluster = cluster_state.find_layout(name)
    for one in cluster.nodes if cluster else ():
        node.stop(one)
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
