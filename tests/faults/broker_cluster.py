"""A RabbitMQ of three nodes, in a namespace of its own: manifests/rabbitmq, changed where it must.

Its nodes find each other by their pods' names. They have no liveness probe, so that a node which a
test stops stays stopped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tests.faults.broker import BrokerFaults
from tests.integration.amqp.own_broker import OwnBroker, manifests

if TYPE_CHECKING:
    from tests.conftest import Kubectl

NODES = 3

_HEADLESS = "rabbitmq-nodes"

#: Nodes of one cluster prove it to each other by this.
_COOKIE = "-setcookie only-for-trying-out"


@dataclass(frozen=True)
class BrokerCluster:
    """Three nodes: each with an address of its own, which is only this node's."""

    namespace: str
    nodes: tuple[OwnBroker, ...]
    faults: tuple[BrokerFaults, ...]

    @property
    def host(self) -> str:
        """The name by which pods reach whichever nodes run."""
        return f"rabbitmq.{self.namespace}.svc.cluster.local"

    def running(self, asked: int = 0) -> set[str]:
        """Return the pods whose node runs, as one of the nodes sees it."""
        answer = json.loads(self.faults[asked].control("cluster_status", "--formatter=json"))
        return {node.partition("@")[2].partition(".")[0] for node in answer["running_nodes"]}


@contextmanager
def three_nodes(kubectl: Kubectl, namespace: str, host: str) -> Iterator[BrokerCluster]:
    """Start three nodes in a namespace, which is made and removed.

    Args:
        kubectl: for the cluster.
        namespace: the name of the namespace.
        host: where NodePorts answer.
    """
    kubectl.ok("create", "namespace", namespace)
    try:
        objects = changed(list(yaml.safe_load_all(manifests(kubectl, namespace))), namespace)
        kubectl.ok("apply", "-f", "-", input=yaml.safe_dump_all(objects))
        for _ in range(2):  # kubectl gives up after two minutes, whatever its --timeout
            done = kubectl("rollout", "status", "sts/rabbitmq", "-n", namespace, "--timeout=110s")
        assert done.returncode == 0, done.stderr
        nodes = tuple(_node(kubectl, namespace, host, index) for index in range(NODES))
        faults = tuple(
            BrokerFaults(node, kubectl, namespace=namespace, pod=f"rabbitmq-{index}")
            for index, node in enumerate(nodes)
        )
        cluster = BrokerCluster(namespace, nodes, faults)
        faults[0].wait(lambda: len(cluster.running()) == NODES, what="joined", seconds=60)
        yield cluster
    finally:
        kubectl.ok("delete", "namespace", namespace, "--wait=false")


def changed(objects: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """Return the manifests of one node, changed into those of three."""
    result = copy.deepcopy(objects)
    for one in result:
        if one["kind"] == "StatefulSet":
            _spread(one["spec"], namespace)
        elif one["kind"] == "ConfigMap":
            one["data"]["rabbitmq.conf"] += _discovery(namespace)
    labels = {"app.kubernetes.io/name": "rabbitmq"}
    internal = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels}
    ports = [{"name": "amqp", "port": 5672}, {"name": "management", "port": 15672}]
    result.append(_service(_HEADLESS, namespace, {**internal, "ports": ports}))
    for index in range(NODES):
        selector = {"statefulset.kubernetes.io/pod-name": f"rabbitmq-{index}"}
        spec = {
            "type": "NodePort",
            "publishNotReadyAddresses": True,
            "selector": selector,
            "ports": ports,
        }
        result.append(_service(f"rabbitmq-{index}", namespace, spec))
    return result


def _spread(spec: dict[str, Any], namespace: str) -> None:
    spec |= {"replicas": NODES, "serviceName": _HEADLESS, "podManagementPolicy": "Parallel"}
    (container,) = spec["template"]["spec"]["containers"]
    del container["livenessProbe"]
    environment = {one["name"]: one for one in container["env"]}
    emulator = environment.pop("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS")["value"]
    del environment["RABBITMQ_NODENAME"]
    pod_name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    settings: Mapping[str, str] = {
        "RABBITMQ_USE_LONGNAME": "true",
        "RABBITMQ_NODENAME": _node_name("$(POD_NAME)", namespace),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_COOKIE} {emulator}",
        "RABBITMQ_CTL_ERL_ARGS": _COOKIE,
    }
    # A variable that others refer to comes first.
    container["env"] = [
        pod_name,
        *environment.values(),
        *({"name": name, "value": value} for name, value in settings.items()),
    ]


def _discovery(namespace: str) -> str:
    lines = ["", "cluster_formation.peer_discovery_backend = classic_config"]
    for index in range(NODES):
        name = _node_name(f"rabbitmq-{index}", namespace)
        lines.append(f"cluster_formation.classic_config.nodes.{index + 1} = {name}")
    return "\n".join([*lines, "cluster_partition_handling = pause_minority", ""])


def _node_name(pod: str, namespace: str) -> str:
    return f"rabbit@{pod}.{_HEADLESS}.{namespace}.svc.cluster.local"


def _service(name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _node(kubectl: Kubectl, namespace: str, host: str, index: int) -> OwnBroker:
    text = kubectl.ok("get", "service", f"rabbitmq-{index}", "-n", namespace, "-o", "json")
    ports = {one["name"]: one["nodePort"] for one in json.loads(text)["spec"]["ports"]}
    return OwnBroker(
        kubectl=kubectl,
        namespace=namespace,
        host=host,
        port=ports["amqp"],
        management_port=ports["management"],
        username="taskqueue",
        password="only-for-trying-out",
    )
