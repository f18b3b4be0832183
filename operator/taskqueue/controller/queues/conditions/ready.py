"""Ready: whether Tasks are published and run; with Reconciling or Stalled (kstatus) if False."""

from __future__ import annotations

from taskqueue.model.queue import Condition, QueueConfig

#: Reasons that pass by themselves: Reconciling. Those that need a person are Stalled.
_TRANSIENT = frozenset(
    {
        "BrokerUnavailable",
        "ClusterNotReady",
        "Connecting",
        "DeclareFailed",
        "Deleting",
        "ReadingInbox",
    }
)


def ready(
    config: QueueConfig, *, broker: Condition, workers: Condition, refused: bool
) -> tuple[Condition, ...]:
    """Return Ready, and after it Reconciling or Stalled if it is False.

    Args:
        config: what the TaskQueue asks for.
        broker: BrokerConnected.
        workers: WorkersAvailable, or what keeps the operator from starting any.
        refused: there are no workers as asked for.
    """
    if broker.status and not refused:
        return (_ready(config),)
    cause = workers if broker.status else broker
    kind = "Reconciling" if cause.reason in _TRANSIENT else "Stalled"
    return (
        Condition("Ready", False, cause.reason, cause.message),
        Condition(kind, True, cause.reason, cause.message),
    )


def _ready(config: QueueConfig) -> Condition:
    if not config.stop_policy.holds:
        return Condition("Ready", True, "Ready", "Tasks are published and run")
    text = (
        f"spec.stopPolicy is {config.stop_policy}: nothing new is published, published Tasks run on"
    )
    if config.stop_policy.drains:
        text += ", then the workers are removed"
    return Condition("Ready", True, "Held", text)
