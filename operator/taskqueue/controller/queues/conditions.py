"""The conditions of a TaskQueue: pure, from those of its parts."""

from __future__ import annotations

from collections.abc import Mapping

from taskqueue.model.queue import Condition, QueueConfig

#: Reasons that pass by themselves: Reconciling for kstatus. Those that need a person are Stalled.
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


def conditions(
    config: QueueConfig,
    *,
    broker: Condition,
    workers: Condition,
    scaling: Condition,
    refused: bool,
    dead_letters: int | None,
    operator_namespace: str,
) -> tuple[Condition, ...]:
    """Return all conditions: Ready first, then what it comes from.

    Args:
        config: what the TaskQueue asks for.
        broker: BrokerConnected.
        workers: WorkersAvailable.
        scaling: ScalingActive.
        refused: the API server rejects the workload.
        dead_letters: messages in the dead queue, None: unknown.
        operator_namespace: where the command that lists them runs.
    """
    dead = _dead_letters(config, dead_letters, operator_namespace)
    parts = (broker, workers, scaling, dead)
    if broker.status and not refused:
        return (_ready(config), *parts)
    cause = workers if broker.status else broker
    kind = "Reconciling" if cause.reason in _TRANSIENT else "Stalled"
    return (
        Condition("Ready", False, cause.reason, cause.message),
        *parts,
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


def _dead_letters(config: QueueConfig, number: int | None, operator_namespace: str) -> Condition:
    kind = "DeadLetters"
    if number is None:
        return Condition(kind, None, "Unknown", "the dead queue cannot be counted at present")
    if number == 0:
        return Condition(kind, False, "None", "no message is in the dead queue")
    messages = "1 message" if number == 1 else f"{number} messages"
    return Condition(
        kind,
        True,
        "Kept",
        f"{messages} in the dead queue; to list: kubectl exec -n {operator_namespace} "
        "deploy/taskqueue-operator -- python3 -m taskqueue dead-letters list "
        f"{config.namespace}/{config.name}",
    )


class ConditionTransitions:
    """Records when each condition took its present status."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[bool | None, float]] = {}

    def record(self, conditions: tuple[Condition, ...], now: float) -> Mapping[str, float]:
        """Return condition type -> time at which it took its status."""
        for condition in conditions:
            before = self._since.get(condition.type)
            if before is None or before[0] is not condition.status:
                self._since[condition.type] = (condition.status, now)
        return {kind: at for kind, (_, at) in self._since.items()}
