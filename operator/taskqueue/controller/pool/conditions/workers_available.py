"""WorkersAvailable: whether the pool has the workers it should have, and why not."""

from __future__ import annotations

from taskqueue.controller.pool.conditions.workers_elsewhere import workers_elsewhere
from taskqueue.controller.pool.health import PoolHealth
from taskqueue.controller.pool.workload import WorkloadRefusal
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "WorkersAvailable"


def workers_available(
    config: QueueConfig,
    *,
    state: PoolState | None,
    refusal: WorkloadRefusal | None,
    desired: int,
    explanation: str,
    health: PoolHealth,
    disconnected: str = "",
) -> Condition:
    """Return WorkersAvailable.

    Args:
        config: what the TaskQueue asks for.
        state: what the workload reports.
        refusal: why the workload is not as asked.
        desired: the size decided.
        explanation: why it is that.
        health: how healthy the pool is.
        disconnected: which workers run without a connection to the broker; "": none.
    """
    if not config.scales:
        return workers_elsewhere(_TYPE, None)
    if refusal is not None:
        return Condition(_TYPE, False, refusal.reason, refusal.message)
    if health.reason:
        return Condition(_TYPE, False, health.reason, health.message)
    if disconnected:
        return Condition(_TYPE, False, "WorkersDisconnected", disconnected)
    if desired == 0:
        return Condition(_TYPE, True, "ScaledToZero", f"no worker is wanted: {explanation}")
    available = state.available if state is not None else 0
    text = f"{available} of {desired} workers are available"
    if available >= desired:
        return Condition(_TYPE, True, "Available", text)
    if available > 0:
        return Condition(_TYPE, True, "Growing", text)
    return Condition(
        _TYPE,
        False,
        "Starting",
        f"{text}; if this lasts: kubectl describe taskqueue.taskqueue.dev/{config.name} "
        f"-n {config.namespace}",
    )
