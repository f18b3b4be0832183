"""What a pod needs so that a tool of faults can reach it: volumes, environment, a ConfigMap."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Kubectl

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PodAddition:
    """Volumes for pods, and their mounts and environment variables for each container.

    Attributes:
        config_map: manifest of the ConfigMap to create first, in the namespace of the pods.
        volumes: of the pod.
        mounts: of each container.
        environment: of each container.
        host_aliases: of the pod.
    """

    config_map: Body
    volumes: list[Body]
    mounts: list[Body]
    environment: dict[str, str]
    host_aliases: list[Body] = field(default_factory=list)

    def added_to(self, spec: Body) -> Body:
        """Return a copy of a pod's spec with the addition in all its containers."""
        result = copy.deepcopy(spec)
        result.setdefault("volumes", []).extend(self.volumes)
        result.setdefault("hostAliases", []).extend(self.host_aliases)
        for container in result["containers"]:
            container.setdefault("volumeMounts", []).extend(self.mounts)
            container.setdefault("env", []).extend(
                {"name": name, "value": value} for name, value in self.environment.items()
            )
        return result

    @contextmanager
    def in_deployment(self, kubectl: Kubectl, namespace: str, name: str) -> Iterator[None]:
        """Roll a Deployment out with the addition; on exit, roll it back as it was."""
        target = ("-n", namespace, f"deployment/{name}")
        template = json.loads(kubectl.ok("get", *target, "-o", "json"))["spec"]["template"]
        manifest = json.dumps(self.config_map)
        kubectl.ok("apply", "-n", namespace, "-f", "-", input=manifest)
        try:
            _roll_out(kubectl, target, {**template, "spec": self.added_to(template["spec"])})
            yield
        finally:
            _roll_out(kubectl, target, template)
            kubectl.ok("delete", "-n", namespace, "-f", "-", input=manifest)


def _roll_out(kubectl: Kubectl, target: tuple[str, ...], template: Body) -> None:
    """Replace the pod template of a Deployment, and wait until only its pods run."""
    patch = [{"op": "replace", "path": "/spec/template", "value": template}]
    kubectl.ok("patch", *target, "--type=json", "-p", json.dumps(patch))
    kubectl.ok("rollout", "status", *target, "--timeout=110s")
