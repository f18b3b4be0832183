"""ScalingActive: whether the size of the pool follows the backlog, and why not."""

from __future__ import annotations

from taskqueue.controller.pool.autoscaler import ScalingDecision
from taskqueue.controller.pool.conditions.workers_elsewhere import workers_elsewhere
from taskqueue.controller.pool.workload import WorkloadRefusal
from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "ScalingActive"


def scaling_active(
    config: QueueConfig, decision: ScalingDecision | None, refusal: WorkloadRefusal | None
) -> Condition:
    """Return ScalingActive.

    Args:
        config: what the TaskQueue asks for.
        decision: the last one; None: none yet.
        refusal: why the workload cannot be sized.
    """
    if not config.scales:
        return workers_elsewhere(_TYPE, False)
    if config.scaling.paused_replicas is not None:
        return Condition(_TYPE, False, "Paused", "spec.scaling.paused is true")
    if config.scale_target is not None and refusal is not None:
        return Condition(_TYPE, False, refusal.reason, refusal.message)
    if decision is not None and not decision.active:
        return Condition(_TYPE, False, decision.inactive_reason, decision.explanation)
    return Condition(_TYPE, True, "Following", "the size follows the backlog")
