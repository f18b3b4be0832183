"""The broker's Secret in the pods of a TaskQueue's workers, as a volume.

The kubelet replaces the files when the Secret changes, and workers read them for each connection:
changed credentials reach running pods, and the pod template stays as it is. The environment has the
same values for older workers, which read it once, when their container starts.
"""

from __future__ import annotations

from typing import Any

from taskqueue.model.broker_environment import BROKER_VARIABLES

#: Where the pods mount it.
BROKER_DIRECTORY = "/etc/taskqueue/broker"

_VOLUME = "taskqueue-broker"


def mount_broker_secret(
    secret: str, spec: dict[str, Any], container: dict[str, Any], names: list[str]
) -> None:
    """Add the volume with the keys of these variables to a pod's spec and a container's mounts.

    Nothing waits for the Secret, nor for a key of it: what appears later is read then.
    """
    keys = [BROKER_VARIABLES[name] for name in names]
    items = [{"key": key, "path": key} for key in keys]
    source = {"secretName": secret, "optional": True, "items": items}
    spec["volumes"] = [*(spec.get("volumes") or []), {"name": _VOLUME, "secret": source}]
    mount = {"name": _VOLUME, "mountPath": BROKER_DIRECTORY, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]


def broker_entry(secret: str, name: str) -> dict[str, Any]:
    """Return the entry of a container's environment for a key, which older workers read."""
    reference = {"name": secret, "key": BROKER_VARIABLES[name], "optional": True}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}
