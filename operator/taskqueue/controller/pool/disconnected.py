"""Finds workers that run and have no connection to the broker, such as those it refuses to log in.

Pure. The broker does not inform the operator of a refused login, so this relies on what is missing:
heartbeats of a pod that has run for long enough. A worker need not send any. So it counts only
where other workers of the pool are heard, or the broker says that nobody consumes the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskqueue.controller.pool.pool_members import WorkerKnowledge, WorkerObservations
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.pod import Pod
from taskqueue.model.queue import CredentialsType, QueueConfig
from taskqueue.model.worker import WorkerState

#: A container may take this long to import its handlers and to connect, in seconds.
CONNECT_SECONDS = 120.0


def may_lack_workers(observations: WorkerObservations, size: int) -> bool:
    """Return whether some of a pool of this size may be disconnected: list the pods to know.

    Workers beside the pool count here, too, and may hide one of the pool's.
    """
    views = observations.views.values()
    heard = sum(view.state is not WorkerState.STOPPED for view in views)
    return (
        heard < size
        and observations.listened >= WORKER_LOST_SECONDS
        and (heard > 0 or observations.consumers == 0)
    )


def find_disconnected(
    pods: Sequence[Pod], observations: WorkerObservations, *, now: float, wall: float
) -> tuple[Pod, ...]:
    """Return the pods whose workers are not connected, by name.

    Args:
        pods: of the pool, as listed.
        observations: what else is known about the workers.
        now: seconds on the clock of the workers' views.
        wall: seconds since the epoch.
    """
    if observations.listened < WORKER_LOST_SECONDS:
        return ()
    know = WorkerKnowledge(
        observations.views,
        unused=observations.unused,
        listened=observations.listened,
        now=now,
        wall=wall,
    )
    active = [pod for pod in pods if pod.active]
    silent = [pod for pod in active if know.view(pod) is None]
    if len(silent) == len(active) and observations.consumers != 0:
        return ()
    # By a clock that is ahead it starts in the future: it has time to connect, too.
    found = (
        pod
        for pod in silent
        if pod.running_since is not None and wall - pod.running_since >= CONNECT_SECONDS
    )
    return tuple(sorted(found, key=lambda pod: pod.name))


def explain_disconnected(config: QueueConfig, disconnected: Sequence[Pod]) -> str:
    """Return a condition's message about such pods; "": there are none."""
    if not disconnected:
        return ""
    name, others = disconnected[0].name, len(disconnected) - 1
    more = f" and {others} more" if others else ""
    source = "the Secret of the broker"
    if config.credentials.type is CredentialsType.MANAGED:
        source = "the Secret that the operator keeps for them (see CredentialsReady)"
    elif secret := config.credentials.secret or config.connection_secret:
        source = f"Secret {config.namespace}/{secret}"
    return (
        f"pod {name}{more} runs and has no connection to the broker: "
        f"kubectl logs -n {config.namespace} {name} says why (consumer.lost). If the login is "
        f"refused, correct the credentials in {source}, which running workers read again, or "
        "those that the pod template sets itself"
    )
