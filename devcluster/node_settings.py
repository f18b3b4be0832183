"""The settings of a node: the files and command lines of its programs, as pure functions.

`Layout` fixes where things are and which addresses hold; `files` renders the configuration files,
`programs` the command lines, `mounts` what the node sees in place of the host's folders. Nothing
here touches the machine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster.certificates import Identity
from devcluster.subnets import Link

#: The service network, the API server's address in it, and the cluster DNS.
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"

#: The pods' network. Each node has a network namespace of its own, so all use the same.
POD_NETWORK = "10.244.0.0/16"

API_PORT = 6443

#: Where the programs of a node and its init are looked for.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PAUSE_IMAGE = "devcluster.internal/pause:1"

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


@dataclass(frozen=True)
class Layout:
    """One cluster's fixed points."""

    name: str
    link: Link
    state: Path
    binaries: Path
    cni_plugins: str = "/usr/lib/cni"
    feature_gates: Mapping[str, bool] = field(default_factory=dict)

    @property
    def node_name(self) -> str:
        """The Node's name, as kind calls it."""
        return f"{self.name}-control-plane"

    @property
    def server(self) -> str:
        """The API server's URL, from the host and from the node."""
        return f"https://{self.link.node_address}:{API_PORT}"

    @property
    def cgroup(self) -> str:
        """The cgroup below which all pods of the cluster are."""
        return f"/taskqueue-devcluster-{self.name}"

    @property
    def pki(self) -> Path:
        """The folder of keys and certificates."""
        return self.state / "pki"

    @property
    def config(self) -> Path:
        """The folder of configuration files."""
        return self.state / "config"

    @property
    def logs(self) -> Path:
        """The folder of the programs' logs."""
        return self.state / "logs"

    @property
    def objects_created(self) -> Path:
        """A file that says that the objects which CoreDNS needs are in the cluster."""
        return self.state / "objects-created"

    @property
    def data(self) -> Path:
        """The folder of the programs' data."""
        return self.state / "data"


def identities(layout: Layout) -> list[Identity]:
    """Return everyone who needs a certificate."""
    node = layout.link.node_address
    services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    services.append("kubernetes.default.svc.cluster.local")
    api_addresses = ["127.0.0.1", node, API_SERVICE_ADDRESS, "localhost", *services]
    return [
        Identity("apiserver", "kube-apiserver", addresses=api_addresses),
        Identity("kubelet-server", layout.node_name, addresses=[node, layout.node_name]),
        Identity("apiserver-to-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
        Identity("admin", "kubernetes-admin", "system:masters"),
        Identity("kubelet", f"system:node:{layout.node_name}", "system:nodes"),
        Identity("controller-manager", "system:kube-controller-manager"),
        Identity("scheduler", "system:kube-scheduler"),
        Identity("proxy", "system:kube-proxy"),
        Identity("coredns", "system:coredns"),
    ]


#: Identities whose program reads a kubeconfig from the node's configuration folder.
KUBECONFIG_USERS = ("admin", "kubelet", "controller-manager", "scheduler", "proxy", "coredns")


def files(layout: Layout) -> dict[str, str]:
    """Return the configuration files by their path below the configuration folder."""
    return {
        "containerd.toml": _containerd(layout),
        "cni/10-devcluster.conflist": json.dumps(_cni(), indent=2),
        "kubelet.json": json.dumps(_kubelet(layout), indent=2),
        "proxy.json": json.dumps(_proxy(layout), indent=2),
        "Corefile": _corefile(layout),
        "resolv.conf": f"nameserver {layout.link.node_address}\n",
        "node.json": json.dumps(_node(layout), indent=2),
    }


def _node(layout: Layout) -> dict[str, Any]:
    """What `node_init` does: see there."""
    data = layout.data
    return {
        "tmpfs": ["/run"],
        "binds": [[str(data / folder[1:]), folder] for folder in PRIVATE_FOLDERS],
        "shielded": list(SHIELDED_SYSCTLS),
        "sysctls": {"net/ipv4/ip_forward": "1"},
        "logs": str(layout.logs),
        "authority": str(layout.pki / "ca.crt"),
        "programs": _programs(layout),
    }


def _programs(layout: Layout) -> list[dict[str, Any]]:
    def program(name: str, after: str, command: str, *arguments: str) -> dict[str, Any]:
        return {"name": name, "after": after, "command": [command, *arguments]}

    def built(name: str, after: str, *arguments: str) -> dict[str, Any]:
        return program(name, after, str(layout.binaries / name), *arguments)

    config, pki, node = layout.config, layout.pki, layout.link.node_address
    gates = ",".join(f"{gate}={str(on).lower()}" for gate, on in layout.feature_gates.items())
    gate_flags = [f"--feature-gates={gates}"] if gates else []
    # Ready, not merely listening: only then are the roles of the programs below in place.
    api = f"{layout.server}/readyz"
    return [
        program("etcd", "", "etcd", *_etcd()),
        program("containerd", "", "containerd", f"--config={config}/containerd.toml"),
        built("kube-apiserver", "tcp:127.0.0.1:2379", *_api_server(layout), *gate_flags),
        built(
            "kube-controller-manager",
            api,
            f"--kubeconfig={config}/controller-manager.kubeconfig",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--use-service-account-credentials=true",
            # Its own start is held up by the default of 20 requests a second.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--leader-elect=false",
            "--profiling=false",
            *gate_flags,
        ),
        built(
            "kube-scheduler",
            api,
            f"--kubeconfig={config}/scheduler.kubeconfig",
            "--leader-elect=false",
            "--profiling=false",
            *gate_flags,
        ),
        built(
            "kubelet",
            "unix:/run/containerd/containerd.sock",
            f"--config={config}/kubelet.json",
            f"--kubeconfig={config}/kubelet.kubeconfig",
            f"--hostname-override={layout.node_name}",
            f"--node-ip={node}",
        ),
        built("kube-proxy", api, f"--config={config}/proxy.json"),
        built("coredns", f"file:{layout.objects_created}", "-conf", f"{config}/Corefile"),
    ]


def _api_server(layout: Layout) -> list[str]:
    pki = layout.pki
    return [
        f"--advertise-address={layout.link.node_address}",
        f"--secure-port={API_PORT}",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-accounts.key",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-to-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-to-kubelet.key",
        # The node's name resolves nowhere; without this `kubectl logs` looks it up.
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _etcd() -> list[str]:
    # A throw-away cluster: nothing must survive the machine, so no write waits for the disk.
    # etcd 3.4 has no flag for that (3.5 has), so its data is in the node's tmpfs.
    return [
        "--data-dir=/run/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--quota-backend-bytes=4294967296",
        "--snapshot-count=10000",
    ]


def _containerd(layout: Layout) -> str:
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
bin_dir = "{layout.cni_plugins}"
conf_dir = "{layout.config}/cni"
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _cni() -> dict[str, Any]:
    # Point to point, not a bridge: every packet between pods is routed, so that the node's
    # iptables rules see it whether or not the kernel shows them bridged traffic.
    ranges = [[{"subnet": POD_NETWORK}]]
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


def _kubelet(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{layout.pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{layout.pki}/kubelet-server.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": layout.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{layout.config}/resolv.conf",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "maxPods": 110,
        # The disk is the developer's: nothing is evicted or collected for its sake.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "featureGates": dict(layout.feature_gates),
    }


def _proxy(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": layout.node_name,
        "clientConnection": {"kubeconfig": f"{layout.config}/proxy.kubeconfig"},
        "oomScoreAdj": 0,
        # The connection table's size belongs to the host; zero leaves it alone.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "iptables": {"minSyncPeriod": "100ms"},
        "featureGates": dict(layout.feature_gates),
    }


def _corefile(layout: Layout) -> str:
    # Names outside the cluster do not exist: a pod that asks for one hears so at once.
    return f"""(common) {{
    bind {layout.link.node_address}
    errors
}}
cluster.local in-addr.arpa ip6.arpa {{
    import common
    cache 5
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {layout.config}/coredns.kubeconfig
        pods insecure
        ttl 5
    }}
}}
. {{
    import common
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def objects(layout: Layout) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of the cluster itself, each after the collection it belongs in.

    They are the DNS Service, which CoreDNS answers from the node, and CoreDNS's role.
    """
    rbac = "rbac.authorization.k8s.io"
    dns = {"name": "kube-dns", "namespace": "kube-system"}
    role = {"name": "system:coredns"}
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    watched = {"": ["services", "pods", "namespaces"], "discovery.k8s.io": ["endpointslices"]}
    service = {
        "metadata": dns | {"labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": DNS_ADDRESS, "ports": ports},
    }
    addresses = {
        "metadata": dns | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [layout.link.node_address], "conditions": {"ready": True}}],
        "ports": ports,
    }
    cluster_role = {
        "metadata": role,
        "rules": [
            {"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]}
            for group, resources in watched.items()
        ],
    }
    binding = {
        "metadata": role,
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", **role},
        "subjects": [{"apiGroup": rbac, "kind": "User", **role}],
    }
    return [
        (f"/apis/{rbac}/v1/clusterroles", cluster_role),
        (f"/apis/{rbac}/v1/clusterrolebindings", binding),
        ("/api/v1/namespaces/kube-system/services", service),
        ("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", addresses),
    ]
