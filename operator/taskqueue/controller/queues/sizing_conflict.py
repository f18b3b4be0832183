"""Which TaskQueue sizes a workload that several refer to."""

from __future__ import annotations

from collections.abc import Container, Iterable

from taskqueue.kubernetes.ownership import SUFFIX
from taskqueue.model.queue import QueueConfig, QueueKey


def sizing_conflict(
    config: QueueConfig,
    everyone: Iterable[tuple[float, QueueConfig]],
    *,
    own_pools: Container[QueueKey],
) -> str:
    """Return why a TaskQueue must not size what it refers to; "": it may.

    No TaskQueue may refer to the operator's own Deployments, and of several TaskQueues only the
    oldest sizes a workload.

    Args:
        config: of the TaskQueue.
        everyone: all TaskQueues, each after the time of its creation.
        own_pools: those for which the operator has made a Deployment.
    """
    ref = config.scale_target
    if ref is None:
        return ""
    what = f"spec.workers.scaleTargetRef: {ref.kind} {config.namespace}/{ref.name}"
    owner = (config.namespace, ref.name.removesuffix(SUFFIX))
    if owner in own_pools and (ref.api_version, ref.kind) == ("apps/v1", "Deployment"):
        return f"{what} is created by the operator for a template: name another one"
    claims = [
        (created, one.name)
        for created, one in everyone
        if (one.namespace, one.scale_target) == (config.namespace, ref)
    ]
    _, first = min(claims, default=(0.0, config.name))
    if first == config.name:
        return ""
    return f"{what} is already sized by TaskQueue {first}: name another one"
