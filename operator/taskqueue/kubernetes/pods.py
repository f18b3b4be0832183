"""Lists the pods of a worker pool, sets their deletion cost, and deletes them.

A pod that is starting has no trouble: a waiting container has one only when its reason says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.pod import Pod, Trouble
from taskqueue.timestamps import from_rfc3339

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

#: Reasons of a waiting container that starts normally.
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_CRASH_LOOP = "CrashLoopBackOff"
_UNSCHEDULABLE = "Unschedulable"

#: Deletion costs are 32-bit integers; Kubernetes reads any other value as 0.
_COSTS = range(-(2**31), 2**31)

#: Longer messages of the kubelet are truncated: they become part of a condition.
_MESSAGE_LENGTH = 300


async def list_pods(client: ApiClient, namespace: str, selector: str) -> tuple[Pod, ...]:
    """Return the pods that a label selector matches.

    They come from the API server's cache, to spare etcd, and may be slightly stale.

    Raises:
        ApiError: refused or unreachable.
    """
    answer = await client.get(_path(namespace), labelSelector=selector, resourceVersion="0")
    return tuple(read_pod(raw) for raw in answer.get("items") or ())


async def set_deletion_cost(client: ApiClient, namespace: str, pod: Pod, cost: int | None) -> None:
    """Set a pod's pod-deletion-cost; None removes it. A pod that no longer exists is ignored.

    Raises:
        ApiError: refused or unreachable.
    """
    annotations = {COST_ANNOTATION: None if cost is None else str(cost)}
    # The uid is a precondition: a new pod of the same name, as of a StatefulSet, is not changed.
    body = {"metadata": {"uid": pod.uid, "annotations": annotations}}
    try:
        await client.merge(f"{_path(namespace)}/{pod.name}", body)
    except ApiError as error:
        replaced = error.status == 422 and "metadata.uid" in error.message
        if error.status not in (404, 409) and not replaced:
            raise


async def delete_pod(client: ApiClient, namespace: str, pod: Pod) -> None:
    """Delete a pod with its own grace period. A pod that no longer exists is ignored.

    Raises:
        ApiError: refused or unreachable.
    """
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": pod.uid}}
    try:
        await client.request("DELETE", f"{_path(namespace)}/{pod.name}", body=body)
    except ApiError as error:
        if error.status not in (404, 409):
            raise


def read_pod(raw: Mapping[str, Any]) -> Pod:
    """Convert a Pod object."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    containers = status.get("containerStatuses") or ()
    began = [
        _seconds(running.get("startedAt"))
        for container in containers
        if (running := (container.get("state") or {}).get("running")) is not None
    ]
    owners = metadata.get("ownerReferences") or ()
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=next((str(owner["uid"]) for owner in owners if owner.get("controller")), ""),
        phase=status.get("phase", "Pending"),
        ready=any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in status.get("conditions") or ()
        ),
        assigned=bool(spec.get("nodeName")),
        running_since=max(began, default=None),
        leaving="deletionTimestamp" in metadata,
        cost=_cost((metadata.get("annotations") or {}).get(COST_ANNOTATION, "0")),
        created=_seconds(metadata.get("creationTimestamp")),
        restarts=max((container.get("restartCount", 0) for container in containers), default=0),
        trouble=next(_troubles(status), None),
    )


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def _troubles(status: Mapping[str, Any]) -> Iterator[Trouble]:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason") or _UNSCHEDULABLE
            yield Trouble(reason, _one_line(condition.get("message", "")) or "no node takes it")
    yield from _container_troubles(status.get("initContainerStatuses") or (), "init container")
    yield from _container_troubles(status.get("containerStatuses") or (), "container")


def _container_troubles(containers: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Trouble]:
    for container in containers:
        who = f"{kind} {container['name']}"
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        ended = (container.get("lastState") or {}).get("terminated")
        now_ended = (container.get("state") or {}).get("terminated")
        if reason == _CRASH_LOOP:
            yield Trouble(
                reason, f"{who} {_describe_end(ended)}, {container.get('restartCount', 0)} times"
            )
        elif reason not in _STARTING:
            yield Trouble(reason, f"{who}: {_one_line(waiting.get('message', '')) or 'waits'}")
        elif now_ended is not None and now_ended.get("exitCode", 0) != 0:
            yield Trouble(now_ended.get("reason") or "Error", f"{who} {_describe_end(now_ended)}")


def _describe_end(terminated: Mapping[str, Any] | None) -> str:
    if terminated is None:
        return "ended"
    said = terminated.get("reason", "")
    why = f" ({said})" if said not in ("", "Error", "Completed") else ""
    message = _one_line(terminated.get("message", ""))
    return f"ended with code {terminated.get('exitCode', 0)}{why}" + (
        f": {message}" if message else ""
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_LENGTH]


def _cost(text: str) -> int:
    """Parse a deletion cost as Kubernetes does: no plus sign, no leading zero, else 0."""
    try:
        cost = int(text)
    except ValueError:
        return 0
    return cost if str(cost) == text and cost in _COSTS else 0


def _seconds(text: str | None) -> float:
    return 0.0 if text is None else from_rfc3339(text)
