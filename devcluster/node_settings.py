"""The settings of a node: the files and command lines of its programs, as pure functions.

`files` renders the configuration files, the command lines among them. Nothing here touches the
machine. What only the control plane runs is in `control_plane_settings`.
"""

import json
from collections.abc import Sequence
from typing import Any

from devcluster.certificates import Identity
from devcluster.layout import NodeLayout, Software
from devcluster.subnets import DNS_ADDRESS, POD_NETWORK

#: Where the programs of a node and its init are looked for.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PAUSE_IMAGE = "devcluster.internal/pause:1"

#: The label and the taint of a control plane, as kubeadm has them.
CONTROL_PLANE_KEY = "node-role.kubernetes.io/control-plane"

#: Folders that programs want at fixed places: the node gets its own there.
PRIVATE_FOLDERS = (
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
)

#: Kernel settings of the whole machine that kubelet insists on writing. The node gets a plain
#: file in place of each, so that the host keeps its own.
SHIELDED_SYSCTLS = (
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
)

#: A program as `node_init` starts it: ``name``, what it starts ``after``, and ``command``.
Program = dict[str, Any]


def program(name: str, after: str, command: str, *arguments: str) -> Program:
    """Return a program; for ``after`` see `node_init.ready`."""
    return {"name": name, "after": after, "command": [command, *arguments]}


def identities(node: NodeLayout) -> list[Identity]:
    """Return the node's own certificates: its kubelet's as a server and as a client."""
    addresses = [node.link.node_address, node.name]
    return [
        Identity(f"{node.kubelet_identity}-server", node.name, addresses=addresses),
        Identity(node.kubelet_identity, f"system:node:{node.name}", "system:nodes"),
    ]


def kubeconfig_users(node: NodeLayout) -> dict[str, str]:
    """Return the kubeconfigs that the node's programs read, each with whose certificate it has."""
    return {"kubelet": node.kubelet_identity, "proxy": "proxy"}


def files(
    node: NodeLayout, software: Software, own_programs: Sequence[Program] = ()
) -> dict[str, str]:
    """Return the configuration files by their path below the configuration folder.

    Args:
        node: whose files.
        software: what it runs.
        own_programs: what it runs beyond the programs of every node.
    """
    programs = [*own_programs, *_programs(node, software)]
    return {
        "containerd.toml": _containerd(node, software),
        "cni/10-devcluster.conflist": json.dumps(_cni(node), indent=2),
        "kubelet.json": json.dumps(_kubelet(node, software), indent=2),
        "proxy.json": json.dumps(_proxy(node, software), indent=2),
        "resolv.conf": f"nameserver {node.cluster.control_plane.link.node_address}\n",
        "node.json": json.dumps(_node(node, programs), indent=2),
    }


def _node(node: NodeLayout, programs: list[Program]) -> dict[str, Any]:
    """What `node_init` does: see there."""
    return {
        "tmpfs": ["/run"],
        "binds": [[str(node.data / folder[1:]), folder] for folder in PRIVATE_FOLDERS],
        "shielded": list(SHIELDED_SYSCTLS),
        "sysctls": {"net/ipv4/ip_forward": "1"},
        "logs": str(node.logs),
        "authority": str(node.cluster.pki / "ca.crt"),
        "programs": programs,
    }


def _programs(node: NodeLayout, software: Software) -> list[Program]:
    config = node.config
    # Ready, not merely listening: only then is the role of kube-proxy in place.
    api = f"{node.cluster.server}/readyz"
    return [
        program("containerd", "", "containerd", f"--config={config}/containerd.toml"),
        program(
            "kubelet",
            # A worker's would find no API server yet, and then try ever more rarely.
            "unix:/run/containerd/containerd.sock" if node.is_control_plane else api,
            software.program("kubelet"),
            f"--config={config}/kubelet.json",
            f"--kubeconfig={config}/kubelet.kubeconfig",
            f"--hostname-override={node.name}",
            f"--node-ip={node.link.node_address}",
        ),
        program("kube-proxy", api, software.program("kube-proxy"), f"--config={config}/proxy.json"),
    ]


def _containerd(node: NodeLayout, software: Software) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    unused = ", ".join(f'"io.containerd.snapshotter.v1.{s}"' for s in ("aufs", "btrfs", "zfs"))
    return f"""version = 2
disabled_plugins = [{unused}]
[grpc]
address = "/run/containerd/containerd.sock"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE the kernel refuses the lower scores that sandboxes would get.
restrict_oom_score_adj = true
[{cri}.cni]
bin_dir = "{software.cni_plugins}"
conf_dir = "{node.config}/cni"
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _cni(node: NodeLayout) -> dict[str, Any]:
    # Point to point, not a bridge: every packet between pods is routed, so that the node's
    # iptables rules see it whether or not the kernel shows them bridged traffic.
    own = node.link.pod_network
    # The subnet is that of all pods, because the plugin hides the address of a pod from whatever is
    # outside of it. The range is the node's.
    ranges = [
        [
            {
                "subnet": POD_NETWORK,
                "rangeStart": str(own[2]),
                "rangeEnd": str(own[-2]),
                "gateway": str(own[1]),
            }
        ]
    ]
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "0.4.0",
        "name": "devcluster",
        "plugins": [
            {"type": "ptp", "ipMasq": True, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _kubelet(node: NodeLayout, software: Software) -> dict[str, Any]:
    cluster = node.cluster
    certificate = f"{cluster.pki}/{node.kubelet_identity}-server"
    # As kind does it: where there are workers, pods do not go to the control plane unasked.
    tainted = node.is_control_plane and cluster.workers > 0
    taints = [{"key": CONTROL_PLANE_KEY, "effect": "NoSchedule"}] if tainted else []
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{cluster.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{certificate}.crt",
        "tlsPrivateKeyFile": f"{certificate}.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{node.config}/resolv.conf",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "maxPods": 110,
        "registerWithTaints": taints,
        # The disk is the developer's: nothing is evicted or collected for its sake.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "featureGates": dict(software.feature_gates),
    }


def _proxy(node: NodeLayout, software: Software) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": f"{node.config}/proxy.kubeconfig"},
        "oomScoreAdj": 0,
        # The connection table's size belongs to the host; zero leaves it alone.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "iptables": {"minSyncPeriod": "100ms"},
        "featureGates": dict(software.feature_gates),
    }
