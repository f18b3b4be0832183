"""DeadLetters: whether there are messages in the dead queue."""

from __future__ import annotations

from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "DeadLetters"


def dead_letters(config: QueueConfig, count: int | None, operator_namespace: str) -> Condition:
    """Return DeadLetters for ``count`` messages in the dead queue; None: unknown."""
    if count is None:
        return Condition(_TYPE, None, "Unknown", "the dead queue cannot be counted at present")
    if count == 0:
        return Condition(_TYPE, False, "None", "no message is in the dead queue")
    messages = "1 message" if count == 1 else f"{count} messages"
    return Condition(
        _TYPE,
        True,
        "Kept",
        f"{messages} in the dead queue; to list: kubectl exec -n {operator_namespace} "
        "deploy/taskqueue-operator -- python3 -m taskqueue dead-letters list "
        f"{config.namespace}/{config.name}",
    )
