"""Where the parts of a native cluster are: folders, names, addresses, cgroups.

A cluster's folder is also its control plane's; each worker has a folder within it, named by its
role. What is here follows from a cluster's name, number and count of workers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from devcluster.subnets import Link

API_PORT = 6443

CONTROL_PLANE = "control-plane"


@dataclass(frozen=True)
class ClusterLayout:
    """One cluster's fixed points.

    Attributes:
        name: the cluster's name.
        number: which of the networks it has.
        state: the folder of its state.
        workers: how many nodes of role `worker` it has.
    """

    name: str
    number: int
    state: Path
    workers: int = 0

    @property
    def control_plane(self) -> "NodeLayout":
        """The node that runs the cluster's own programs."""
        return NodeLayout(self, 0)

    @property
    def nodes(self) -> list["NodeLayout"]:
        """All nodes, the control plane first."""
        return [NodeLayout(self, index) for index in range(self.workers + 1)]

    @property
    def server(self) -> str:
        """The API server's URL, from the host and from every node."""
        return f"https://{self.control_plane.link.node_address}:{API_PORT}"

    @property
    def pki(self) -> Path:
        """The folder of keys and certificates."""
        return self.state / "pki"

    @property
    def objects_created(self) -> Path:
        """A file that says that the objects which CoreDNS needs are in the cluster."""
        return self.state / "objects-created"


@dataclass(frozen=True)
class NodeLayout:
    """One node's fixed points; its index is 0 for the control plane."""

    cluster: ClusterLayout
    index: int

    @property
    def role(self) -> str:
        """The role with its number: `control-plane`, `worker`, `worker2`, ..."""
        return role(self.index)

    @property
    def is_control_plane(self) -> bool:
        """Whether it runs the cluster's own programs."""
        return self.index == 0

    @property
    def name(self) -> str:
        """The Node's name, as kind calls it."""
        return node_name(self.cluster.name, self.index)

    @property
    def link(self) -> Link:
        """The node's link, with all its addresses."""
        return Link(self.cluster.number, self.index)

    @property
    def cgroup(self) -> str:
        """The cgroup below which the node's pods are."""
        # No cluster's name has an underscore, so none has another's cgroup.
        top = f"/taskqueue-devcluster-{self.cluster.name}"
        return top if self.is_control_plane else f"{top}_{self.role}"

    @property
    def kubelet_identity(self) -> str:
        """The name of the kubelet's certificate as a client."""
        return "kubelet" if self.is_control_plane else f"kubelet-{self.role}"

    @property
    def state(self) -> Path:
        """The folder of the node's state."""
        return self.cluster.state if self.is_control_plane else self.cluster.state / self.role

    @property
    def config(self) -> Path:
        """The folder of configuration files."""
        return self.state / "config"

    @property
    def logs(self) -> Path:
        """The folder of the programs' logs."""
        return self.state / "logs"

    @property
    def data(self) -> Path:
        """The folder of the programs' data."""
        return self.state / "data"


@dataclass(frozen=True)
class Software:
    """What the nodes of a cluster run, and how it is set.

    Attributes:
        binaries: the folder of the Kubernetes programs.
        cni_plugins: the folder of the CNI plugins.
        feature_gates: Kubernetes feature gates.
    """

    binaries: Path
    cni_plugins: str = "/usr/lib/cni"
    feature_gates: Mapping[str, bool] = field(default_factory=dict)

    def program(self, name: str) -> str:
        """Return the path of a Kubernetes program."""
        return str(self.binaries / name)


def role(index: int) -> str:
    """Return a node's role with its number, as kind numbers workers: the first has none."""
    if index == 0:
        return CONTROL_PLANE
    return "worker" if index == 1 else f"worker{index}"


def node_name(cluster: str, index: int) -> str:
    """Return the name of a cluster's node, as kind calls it."""
    return f"{cluster}-{role(index)}"
