"""Starts and stops one node of a native cluster.

A node is `node_init` as process 1 of new network, mount and process namespaces, and a link out of
them. A worker's process namespace is within its control plane's, and its link ends there. So
whatever ends the control plane ends the whole cluster: the kernel kills all processes in it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from devcluster import cluster_state, host_cleanup, node_settings
from devcluster.cluster_state import Record
from devcluster.commands import DevclusterError, run
from devcluster.layout import NodeLayout
from devcluster.subnets import POD_NETWORK
from devcluster.waiting import wait_until

_NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def start(node: NodeLayout) -> Record:
    """Start a node's init in new namespaces and link it; its files must be there.

    A worker's control plane must run.

    Raises:
        DevclusterError: the namespaces or the link cannot be made.
    """
    host_cleanup.make_cgroups(node.cgroup)
    # A relative entry of PATH would make a path that ends in another folder.
    python = str(Path(sys.executable).absolute())
    init = [python, "-I", str(Path(__file__).resolve().with_name("node_init.py"))]
    command = ["unshare", *_NAMESPACES, *init, str(node.config / "node.json")]
    if not node.is_control_plane:
        command = ["nsenter", f"--target={_outer(node)}", "--pid", "--", *command]
    with (node.logs / "node.log").open("ab") as log:
        parent = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": node_settings.PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    pid = _init_of(parent, generations=1 if node.is_control_plane else 2)
    _connect(node, pid)
    record = cluster_state.write(node, pid)
    if parent.stdin is None:  # a PIPE was asked for
        raise AssertionError
    # Until it has this line, the node ends if this process does.
    parent.stdin.write(b"network ready\n")
    parent.stdin.close()
    return record


def stop(node: NodeLayout) -> None:
    """Kill a node, if it runs, and remove what it leaves but its folders.

    The control plane takes the workers with it: stop them as well, for what they leave.
    """
    record = cluster_state.find(node)
    if record:
        os.kill(record.pid, signal.SIGKILL)
        wait_until(lambda: not record.alive, f"process {record.pid} of {node.name} to end")
    if node.is_control_plane:
        host_cleanup.remove_link(node.link)
    elif cluster_state.find(node.cluster.control_plane):
        interfaces = Path(f"/proc/{_outer(node)}/net/dev")
        wait_until(
            lambda: f"{node.link.interface}:" not in interfaces.read_text(),
            f"the link of {node.name} to vanish",
        )
    host_cleanup.remove_cgroups(node.cgroup)


def _init_of(parent: subprocess.Popen[bytes], generations: int) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and parent.poll() is None:
        pid: int | None = parent.pid
        for _ in range(generations):
            pid = pid and cluster_state.child_of(pid)
        if pid:
            return pid
        time.sleep(0.02)
    raise DevclusterError(
        "unshare could not create the node's namespaces.\n"
        "What to do: run as root, on a machine or in a container that may create namespaces."
    )


def _outer(node: NodeLayout) -> int:
    """Return a process in whose namespaces a worker is."""
    return cluster_state.get_record(node.cluster.control_plane).pid


def _connect(node: NodeLayout, pid: int) -> None:
    """Link a node to the host, or a worker to its control plane, and set its routes."""
    link = node.link
    outside = [
        f"link add {link.interface} type veth peer name eth0 netns {pid}",
        f"address add {link.gateway}/{link.prefix_length} dev {link.interface}",
        f"link set {link.interface} up",
    ]
    inside = [
        "link set lo up",
        f"address add {link.node_address}/{link.prefix_length} dev eth0",
        "link set eth0 up",
        f"route add default via {link.gateway}",
    ]
    if node.is_control_plane:
        outside.append(f"route add {link.cluster_network} via {link.node_address}")
        # What is sent to a worker or a pod that is not there must not go back to the host.
        inside += [f"route add unreachable {net}" for net in (link.cluster_network, POD_NETWORK)]
        _ip([], outside)
    else:
        outside.append(f"route add {link.pod_network} via {link.node_address}")
        _ip(["nsenter", f"--target={_outer(node)}", "--net"], outside)
    _ip(["nsenter", f"--target={pid}", "--net"], inside)


def _ip(prefix: list[str], lines: list[str]) -> None:
    run([*prefix, "ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))
