"""The conditions of a TaskQueue about its workers: pure, from what the pool knows."""

from __future__ import annotations

from taskqueue.controller.pool.autoscaler import ScalingDecision
from taskqueue.controller.pool.health import PoolHealth
from taskqueue.controller.pool.workload import WorkloadRefusal
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.model.queue import Condition, QueueConfig


def workers_available(
    config: QueueConfig,
    *,
    state: PoolState | None,
    refusal: WorkloadRefusal | None,
    desired: int,
    explanation: str,
    health: PoolHealth,
) -> Condition:
    """Return WorkersAvailable.

    Args:
        config: what the TaskQueue asks for.
        state: what the workload reports.
        refusal: why the workload is not as asked.
        desired: the size decided.
        explanation: why it is that.
        health: how healthy the pool is.
    """
    kind = "WorkersAvailable"
    if not config.scales:
        return _elsewhere(kind, None)
    if refusal is not None:
        return Condition(kind, False, refusal.reason, refusal.message)
    if health.reason:
        return Condition(kind, False, health.reason, health.message)
    if desired == 0:
        return Condition(kind, True, "ScaledToZero", f"no worker is wanted: {explanation}")
    available = state.available if state is not None else 0
    text = f"{available} of {desired} workers are available"
    if available >= desired:
        return Condition(kind, True, "Available", text)
    if available > 0:
        return Condition(kind, True, "Growing", text)
    return Condition(
        kind,
        False,
        "Starting",
        f"{text}; if this lasts: kubectl describe taskqueue.taskqueue.dev/{config.name} "
        f"-n {config.namespace}",
    )


def scaling_active(
    config: QueueConfig, decision: ScalingDecision | None, refusal: WorkloadRefusal | None
) -> Condition:
    """Return ScalingActive.

    Args:
        config: what the TaskQueue asks for.
        decision: the last one; None: none yet.
        refusal: why the workload cannot be sized.
    """
    kind = "ScalingActive"
    if not config.scales:
        return _elsewhere(kind, False)
    if config.scaling.paused_replicas is not None:
        return Condition(kind, False, "Paused", "spec.scaling.paused is true")
    if config.scale_target is not None and refusal is not None:
        return Condition(kind, False, refusal.reason, refusal.message)
    if decision is not None and not decision.active:
        return Condition(kind, False, decision.inactive_reason, decision.explanation)
    return Condition(kind, True, "Following", "the size follows the backlog")


def _elsewhere(kind: str, status: bool | None) -> Condition:
    return Condition(
        kind,
        status,
        "WorkersElsewhere",
        "spec.workers has neither template nor scaleTargetRef: workers that run elsewhere are "
        "not counted and not scaled",
    )
