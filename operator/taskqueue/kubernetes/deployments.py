"""Renders, applies and resizes the worker Deployment of a TaskQueue.

The operator owns Deployment ``<TaskQueue>-worker`` by server-side apply. Its pod template is the
user's, with labels, the queue's environment variables, a long enough grace period and, if asked
for, probes added.
Credentials stay in a Secret, which the pods mount. They refer to it from their environment, too, if
it is the connection Secret, for older workers: credentials of their own are in no environment, from
where every program that they start would have them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.kubernetes.broker_files import (
    BROKER_DIRECTORY,
    broker_entry,
    mount_broker_secret,
)
from taskqueue.kubernetes.client import MERGE_PATCH, ApiClient
from taskqueue.kubernetes.direct_limits import (
    DIRECTORY,
    DIRECTORY_VARIABLE,
    direct_limits,
    limit_entry,
    mount_direct_limits,
)
from taskqueue.kubernetes.ownership import (
    FIELD_MANAGER,
    MANAGED_BY,
    owner_reference,
    worker_name,
)
from taskqueue.kubernetes.result_files import add_results
from taskqueue.kubernetes.taskqueue_codec import QUEUE_LABEL
from taskqueue.kubernetes.worker_probes import NoHealthPort, add_probes
from taskqueue.model.broker_environment import BROKER_DIRECTORY_VARIABLE, BROKER_VARIABLES
from taskqueue.model.queue import CredentialsType, QueueConfig, QueueKey

DEPLOYMENTS_PATH = "/apis/apps/v1/deployments"

#: Least grace period of worker pods whose template does not set one.
_MIN_GRACE_SECONDS = 60
#: Beyond the longest attempt: time to stop one at its time limit, and to report it.
_GRACE_MARGIN_SECONDS = 30
#: The end of the grace period, for reporting the attempts that were requeued.
_REPORTING_SECONDS = 5

#: A container needs one of these to find its broker.
_ADDRESS_VARIABLES = frozenset({"TASKQUEUE_BROKER_URI", "TASKQUEUE_BROKER_HOST"})


class InvalidTemplate(ValueError):
    """No Deployment can be rendered from spec.workers; the text says what to change."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """The size of a worker pool.

    Attributes:
        desired: pods asked for.
        replicas: pods that exist.
        available: pods that are available.
        message: why pods cannot be created; "" when they can.
        grace: the grace period of its pod template, in seconds; 0: not known.
    """

    desired: int
    replicas: int
    available: int
    message: str
    grace: int = 0


def deployment_path(key: QueueKey) -> str:
    """Return the path of a TaskQueue's worker Deployment."""
    return f"/apis/apps/v1/namespaces/{key[0]}/deployments/{worker_name(key[1])}"


def default_grace(config: QueueConfig) -> int:
    """Return the grace period of worker pods whose template does not set one, in seconds.

    It is long enough for an attempt that has just begun: a pod that is evicted, or replaced by a
    rollout, finishes what it runs. Attempts with a longer time limit of their own are requeued.
    """
    longest = config.policy.attempt_timeout_seconds + _GRACE_MARGIN_SECONDS
    return max(_MIN_GRACE_SECONDS, longest)


def render(
    config: QueueConfig,
    *,
    replicas: int,
    secret: str | None,
    grace: int = 0,
    installation: str = DEFAULT_INSTALLATION,
) -> dict[str, Any]:
    """Return the Deployment to apply.

    Args:
        config: the TaskQueue.
        replicas: size of the pool.
        secret: name of the workers' Secret in the TaskQueue's namespace; None: there is none.
        grace: the present grace period. Where the template sets none it is raised when it must be
            and never lowered: each change replaces all pods, and a long one harms nobody.
        installation: of the operator; workers of the default one get none.

    Raises:
        InvalidTemplate: the template has no containers, or not the named one; a field that the
            operator adds to has the wrong type; the pods have no address of a broker; or no port
            for probes that they are to have.
    """
    labels = {QUEUE_LABEL: config.name, **MANAGED_BY}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": worker_name(config.name),
            "namespace": config.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(config)],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {QUEUE_LABEL: config.name}},
            "template": _template(
                config, labels, secret, present_grace=grace, installation=installation
            ),
        },
    }


async def apply(
    client: ApiClient,
    config: QueueConfig,
    *,
    replicas: int,
    secret: str | None,
    grace: int,
    installation: str,
) -> PoolState:
    """Create or update the Deployment; arguments as of `render`.

    Raises:
        InvalidTemplate: see `render`.
        ApiError: refused or unreachable; 422 when the template is invalid.
    """
    body = render(config, replicas=replicas, secret=secret, grace=grace, installation=installation)
    return read_pool(await client.apply(deployment_path(config.key), body, manager=FIELD_MANAGER))


async def resize(client: ApiClient, key: QueueKey, *, replicas: int) -> None:
    """Set the size of the pool and change nothing else.

    Raises:
        ApiError: refused or unreachable; 404 when the Deployment does not exist.
    """
    await client.request(
        "PATCH",
        f"{deployment_path(key)}/scale",
        params={"fieldManager": FIELD_MANAGER},
        body={"spec": {"replicas": replicas}},
        content_type=MERGE_PATCH,
    )


def read_pool(raw: Mapping[str, Any]) -> PoolState:
    """Read the size of a worker pool from its Deployment."""
    status = raw.get("status") or {}
    failing = [
        condition.get("message", "")
        for condition in status.get("conditions", ())
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True"
    ]
    return PoolState(
        desired=raw["spec"].get("replicas", 1),
        replicas=status.get("replicas", 0),
        available=status.get("availableReplicas", 0),
        message="; ".join(failing),
        grace=_grace(raw),
    )


def _grace(raw: Mapping[str, Any]) -> int:
    template = raw["spec"].get("template") or {}
    return int((template.get("spec") or {}).get("terminationGracePeriodSeconds") or 0)


def _template(
    config: QueueConfig,
    labels: Mapping[str, str],
    secret: str | None,
    *,
    present_grace: int,
    installation: str,
) -> dict[str, Any]:
    template: dict[str, Any] = copy.deepcopy(dict(config.template or {}))
    metadata = template["metadata"] = template.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidTemplate("spec.workers.template.metadata must be an object")
    own_labels = metadata.get("labels") or {}
    if not isinstance(own_labels, dict):
        raise InvalidTemplate("spec.workers.template.metadata.labels must be an object")
    metadata["labels"] = {**own_labels, **labels}
    spec = template.get("spec")
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not containers:
        raise InvalidTemplate(
            "spec.workers.template.spec.containers is empty: give at least one container"
        )
    if not isinstance(containers, list) or not all(isinstance(one, dict) for one in containers):
        raise InvalidTemplate("spec.workers.template.spec.containers must be a list of objects")
    grace = spec.setdefault(
        "terminationGracePeriodSeconds", max(default_grace(config), present_grace)
    )
    container = _container(config, containers)
    own = container.get("env") or []
    if not isinstance(own, list) or not all(isinstance(entry, dict) for entry in own):
        raise InvalidTemplate(
            f"env of container {container.get('name')!r} in spec.workers.template must be a list "
            "of objects with name and value"
        )
    taken = {str(entry.get("name")) for entry in own}
    if secret is None and not container.get("envFrom") and not taken & _ADDRESS_VARIABLES:
        raise InvalidTemplate(
            "pods cannot use the Secret of a RabbitmqCluster in another namespace: give container "
            f"{container.get('name')!r} in spec.workers.template the env TASKQUEUE_BROKER_URI, "
            f"from a Secret in namespace {config.namespace} with a broker user of its own"
        )
    environment = _environment(config, grace, secret, installation)
    added = [entry for entry in environment if entry["name"] not in taken]
    _check_lists(spec, container)
    limits = [name for name in direct_limits(config) if name not in taken]
    if limits and DIRECTORY_VARIABLE not in taken:
        mount_direct_limits(config, spec, container, limits)
        added.append({"name": DIRECTORY_VARIABLE, "value": DIRECTORY})
    # A file counts before its variable: what the template sets itself must not become one.
    files = [name for name in BROKER_VARIABLES if name not in taken]
    if secret is not None and files and BROKER_DIRECTORY_VARIABLE not in taken:
        mount_broker_secret(secret, spec, container, files)
        added.append({"name": BROKER_DIRECTORY_VARIABLE, "value": BROKER_DIRECTORY})
    added += add_results(config.results, spec, container, taken)
    if config.managed_probes:
        try:
            add_probes(container)
        except NoHealthPort as problem:
            raise InvalidTemplate(str(problem)) from None
    container["env"] = [*added, *own]
    return template


def _check_lists(spec: Mapping[str, Any], container: Mapping[str, Any]) -> None:
    for field, value in (
        ("volumes", spec.get("volumes")),
        (f"volumeMounts of container {container.get('name')!r}", container.get("volumeMounts")),
    ):
        if not isinstance(value or [], list):
            raise InvalidTemplate(f"{field} in spec.workers.template must be a list")


def _container(config: QueueConfig, containers: list[Any]) -> dict[str, Any]:
    if not config.container:
        first: dict[str, Any] = containers[0]
        return first
    names = [entry.get("name") for entry in containers]
    for entry in containers:
        if entry.get("name") == config.container:
            chosen: dict[str, Any] = entry
            return chosen
    raise InvalidTemplate(
        f"spec.workers.container {config.container!r} is none of the template's containers "
        f"{names}: name one of them"
    )


def _environment(
    config: QueueConfig, grace: Any, secret: str | None, installation: str
) -> list[dict[str, Any]]:
    grace_seconds = grace if isinstance(grace, int) else default_grace(config)
    values = {
        "TASKQUEUE_NAMESPACE": config.namespace,
        "TASKQUEUE_QUEUE": config.name,
        "TASKQUEUE_GRACE_SECONDS": str(max(grace_seconds - _REPORTING_SECONDS, 0)),
    }
    if config.concurrency is not None:
        values["TASKQUEUE_CONCURRENCY"] = str(config.concurrency)
    if installation != DEFAULT_INSTALLATION:  # else the upgrade would replace all pods for nothing
        values["TASKQUEUE_INSTALLATION"] = installation
    fields = {"POD_NAME": "metadata.name", "NODE_NAME": "spec.nodeName"}
    shared = config.credentials.type is CredentialsType.SHARED
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        *(limit_entry(config, name) for name in direct_limits(config)),
        *(
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in fields.items()
        ),
        *(broker_entry(secret, name) for name in BROKER_VARIABLES if secret is not None and shared),
    ]
