"""The pods of a worker pool: read, given a deletion cost, deleted.

Formats: Pod v1 of the Kubernetes API, annotation ``controller.kubernetes.io/pod-deletion-cost``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.cluster.client import MERGE_PATCH, ApiClient, ApiError
from taskqueue.cluster.task_objects import seconds_of
from taskqueue.domain.pods import Pod, Trouble
from taskqueue.domain.shrinking import Mark

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
#: What Kubernetes takes for a cost: 32 bits with a sign.
_LEAST_COST, _LARGEST_COST = -(2**31), 2**31 - 1
#: A container waits for one of these on its way; any other reason is trouble.
_PASSING = frozenset({"", "ContainerCreating", "PodInitializing"})


async def list_pods(client: ApiClient, namespace: str, selector: str) -> tuple[Pod, ...]:
    """Return the pods with these labels, as the API server's cache has them.

    Raises:
        ApiError: the API server could not be asked, or refuses.
    """
    found = await client.get(
        f"/api/v1/namespaces/{namespace}/pods",
        labelSelector=selector,
        resourceVersion="0",
    )
    return tuple(read_pod(raw) for raw in found["items"])


async def mark(client: ApiClient, namespace: str, wish: Mark) -> None:
    """Write a pod's deletion cost; one that is gone needs none.

    Raises:
        ApiError: the API server could not be asked, or refuses.
    """
    value = None if wish.cost is None else str(wish.cost)
    metadata = {"uid": wish.pod.uid, "annotations": {COST_ANNOTATION: value}}
    try:
        await client.request(
            "PATCH",
            _path(namespace, wish.pod),
            body={"metadata": metadata},
            content_type=MERGE_PATCH,
        )
    except ApiError as problem:
        if problem.status not in (404, 409):  # gone, or another pod of that name
            raise


async def delete(client: ApiClient, namespace: str, pod: Pod) -> None:
    """Delete a pod; one that is gone, or another of that name, is left alone.

    Raises:
        ApiError: the API server could not be asked, or refuses.
    """
    try:
        await client.request(
            "DELETE", _path(namespace, pod), body={"preconditions": {"uid": pod.uid}}
        )
    except ApiError as problem:
        if problem.status not in (404, 409):
            raise


def _path(namespace: str, pod: Pod) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{pod.name}"


def read_pod(raw: Mapping[str, Any]) -> Pod:
    """Read a Pod object."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    containers = _statuses(status, "containerStatuses")
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    running = [
        seconds_of(begun)
        for one in containers
        if (begun := ((one.get("state") or {}).get("running") or {}).get("startedAt"))
    ]
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=next(
            (
                each["uid"]
                for each in metadata.get("ownerReferences") or ()
                if each.get("controller")
            ),
            "",
        ),
        phase=status.get("phase", "Pending"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        assigned=bool((raw.get("spec") or {}).get("nodeName")),
        running_since=max(running, default=None),
        leaving="deletionTimestamp" in metadata,
        cost=_cost((metadata.get("annotations") or {}).get(COST_ANNOTATION, "0")),
        created=seconds_of(metadata["creationTimestamp"]),
        restarts=max((one.get("restartCount", 0) for one in containers), default=0),
        trouble=_trouble(status, conditions),
    )


def _statuses(status: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return list(status.get(kind) or ())


def _cost(text: str) -> int:
    """Read a cost as Kubernetes does: what is no 32 bit number counts as 0."""
    try:
        cost = int(text)
    except ValueError:
        return 0
    return cost if _LEAST_COST <= cost <= _LARGEST_COST else 0


def _trouble(
    status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]
) -> Trouble | None:
    for one in (
        *_statuses(status, "initContainerStatuses"),
        *_statuses(status, "containerStatuses"),
    ):
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason not in _PASSING:
            last = ((one.get("lastState") or {}).get("terminated")) or {}
            return Trouble(reason, _told(one["name"], waiting, last))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return Trouble("Unschedulable", scheduled.get("message", ""))
    return None


def _told(container: str, waiting: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    text = f"container {container}: {waiting.get('message') or waiting['reason']}"
    if last:
        text += f" (it ended with {last.get('reason', 'Error')}, exit code {last.get('exitCode')})"
    return text
