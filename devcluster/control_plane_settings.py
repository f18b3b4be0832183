"""The settings of what only the control plane runs, as pure functions.

That is etcd, API server, controller manager, scheduler and CoreDNS, beside what `node_settings` has
for every node; and the objects that a new cluster gets.
"""

from typing import Any

from devcluster import node_settings
from devcluster.certificates import Identity
from devcluster.layout import API_PORT, ClusterLayout, NodeLayout, Software
from devcluster.node_settings import CONTROL_PLANE_KEY, Program, program
from devcluster.subnets import API_SERVICE_ADDRESS, DNS_ADDRESS, SERVICE_NETWORK

#: Identities whose program reads a kubeconfig from the control plane's configuration folder.
KUBECONFIG_USERS = ("admin", "controller-manager", "scheduler", "coredns")


def identities(cluster: ClusterLayout) -> list[Identity]:
    """Return everyone who needs a certificate, the nodes included."""
    services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    services.append("kubernetes.default.svc.cluster.local")
    address = cluster.control_plane.link.node_address
    api_addresses = ["127.0.0.1", address, API_SERVICE_ADDRESS, "localhost", *services]
    return [
        Identity("apiserver", "kube-apiserver", addresses=api_addresses),
        Identity("apiserver-to-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
        Identity("admin", "kubernetes-admin", "system:masters"),
        Identity("controller-manager", "system:kube-controller-manager"),
        Identity("scheduler", "system:kube-scheduler"),
        Identity("proxy", "system:kube-proxy"),
        Identity("coredns", "system:coredns"),
        *(identity for node in cluster.nodes for identity in node_settings.identities(node)),
    ]


def kubeconfig_users(node: NodeLayout) -> dict[str, str]:
    """Return the kubeconfigs that a node's programs read, each with whose certificate it has."""
    own = {user: user for user in KUBECONFIG_USERS} if node.is_control_plane else {}
    return {**own, **node_settings.kubeconfig_users(node)}


def files(node: NodeLayout, software: Software) -> dict[str, str]:
    """Return the configuration files of any node by their path below its configuration folder."""
    if not node.is_control_plane:
        return node_settings.files(node, software)
    own = _programs(node.cluster, software)
    return {
        **node_settings.files(node, software, own),
        "Corefile": _corefile(node.cluster),
    }


def _programs(cluster: ClusterLayout, software: Software) -> list[Program]:
    def built(name: str, after: str, *arguments: str) -> Program:
        return program(name, after, software.program(name), *arguments)

    config, pki = cluster.control_plane.config, cluster.pki
    gates = ",".join(f"{gate}={str(on).lower()}" for gate, on in software.feature_gates.items())
    gate_flags = [f"--feature-gates={gates}"] if gates else []
    # Ready, not merely listening: only then are the roles of the programs below in place.
    api = f"{cluster.server}/readyz"
    return [
        program("etcd", "", "etcd", *_etcd()),
        built("kube-apiserver", "tcp:127.0.0.1:2379", *_api_server(cluster), *gate_flags),
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
        built("coredns", f"file:{cluster.objects_created}", "-conf", f"{config}/Corefile"),
    ]


def _api_server(cluster: ClusterLayout) -> list[str]:
    pki = cluster.pki
    return [
        f"--advertise-address={cluster.control_plane.link.node_address}",
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


def _corefile(cluster: ClusterLayout) -> str:
    # Names outside the cluster do not exist: a pod that asks for one hears so at once.
    return f"""(common) {{
    bind {cluster.control_plane.link.node_address}
    errors
}}
cluster.local in-addr.arpa ip6.arpa {{
    import common
    cache 5
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {cluster.control_plane.config}/coredns.kubeconfig
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


def objects(cluster: ClusterLayout) -> list[tuple[str, dict[str, Any]]]:
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
        "endpoints": [
            {"addresses": [cluster.control_plane.link.node_address], "conditions": {"ready": True}}
        ],
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


def node_description(node: NodeLayout) -> dict[str, Any]:
    """Return what kubelet does not say of its own Node, as a merge patch: role and pod network."""
    pods = str(node.link.pod_network)
    labels = {CONTROL_PLANE_KEY: ""} if node.is_control_plane else {}
    return {"metadata": {"labels": labels}, "spec": {"podCIDR": pods, "podCIDRs": [pods]}}
