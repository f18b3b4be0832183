"""The Secret of a TaskQueue's store of results in the pods of its workers, as a volume.

The kubelet replaces the files when the Secret changes, and workers read them for each result.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from taskqueue.model.queue import ResultsConfig
from taskqueue.model.result_environment import (
    OUTPUT_VARIABLE,
    POLICY_VARIABLE,
    RESULT_DIRECTORY_VARIABLE,
    RESULT_VARIABLES,
    RETENTION_VARIABLE,
)

#: Where the pods mount it.
RESULT_DIRECTORY = "/etc/taskqueue/results"

_VOLUME = "taskqueue-results"


def add_results(
    config: ResultsConfig, spec: dict[str, Any], container: dict[str, Any], taken: Container[str]
) -> list[dict[str, Any]]:
    """Add the volume to a pod's spec and a container's mounts; return entries of its environment.

    Of a TaskQueue that says nothing of results nothing is added: its pods stay as they are.
    Nothing waits for the Secret, nor for a key of it: what appears later is read then.

    Args:
        config: what becomes of results.
        spec: of the pod.
        container: of the workers.
        taken: variables that the template sets itself.
    """
    values: dict[str, str] = {}
    if config.secret:
        values[POLICY_VARIABLE] = "Always" if config.always else "Overflow"
        if config.retention_seconds is not None:
            values[RETENTION_VARIABLE] = str(config.retention_seconds)
    if config.output != "None":
        values[OUTPUT_VARIABLE] = config.output
    if config.secret and RESULT_DIRECTORY_VARIABLE not in taken:
        _mount(config.secret, spec, container)
        values[RESULT_DIRECTORY_VARIABLE] = RESULT_DIRECTORY
    return [{"name": name, "value": text} for name, text in values.items() if name not in taken]


def _mount(secret: str, spec: dict[str, Any], container: dict[str, Any]) -> None:
    items = [{"key": key, "path": key} for key in RESULT_VARIABLES.values()]
    source = {"secretName": secret, "optional": True, "items": items}
    spec["volumes"] = [*(spec.get("volumes") or []), {"name": _VOLUME, "secret": source}]
    mount = {"name": _VOLUME, "mountPath": RESULT_DIRECTORY, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
