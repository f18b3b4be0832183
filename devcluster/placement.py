"""Decides which node of the development cluster takes which pods, with kind and without.

kind gives the control plane a taint as soon as there are workers, so that all pods would share the
worker: whoever drains or kills it would hit the operator, RabbitMQ and every other test. Here the
control plane takes all pods, and a worker only those that tolerate `SPARE_TAINT`. What does not ask
for a second node runs as if there were none, at the same cost.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devcluster.commands import run
from devcluster.node_settings import CONTROL_PLANE_KEY

#: The taint of the workers (effect NoSchedule).
SPARE_TAINT = "taskqueue.dev/spare-node"

_EFFECT = "NoSchedule"

#: A command that runs kubectl for a cluster, up to kubectl's arguments.
Kubectl = Sequence[str | Path]


def nodes(kubectl: Kubectl) -> list[dict[str, Any]]:
    """Return the Nodes of a cluster.

    Raises:
        CommandError: the API server does not answer.
    """
    items: list[dict[str, Any]] = json.loads(run([*kubectl, "get", "nodes", "-o", "json"]))["items"]
    return items


def arrange(kubectl: Kubectl) -> list[str]:
    """Give the nodes the taints that decide; return the nodes' names.

    Raises:
        CommandError: the API server does not answer, or refuses.
    """
    found = nodes(kubectl)
    for arguments in changes(found):
        run([*kubectl, "taint", "node", *arguments])
    return [one["metadata"]["name"] for one in found]


def changes(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the arguments of each `kubectl taint node` that the nodes need."""
    needed = []
    for one in found:
        name = one["metadata"]["name"]
        keys = {taint["key"] for taint in one["spec"].get("taints", ())}
        if CONTROL_PLANE_KEY not in one["metadata"].get("labels", {}):
            if len(found) > 1 and SPARE_TAINT not in keys:
                needed.append([name, f"{SPARE_TAINT}:{_EFFECT}"])
        elif CONTROL_PLANE_KEY in keys:
            needed.append([name, f"{CONTROL_PLANE_KEY}:{_EFFECT}-"])
    return needed


def is_ready(one: Mapping[str, Any]) -> bool:
    """Return whether a Node is Ready."""
    ready = {"type": "Ready", "status": "True"}
    return any(ready.items() <= known.items() for known in one["status"].get("conditions", ()))
