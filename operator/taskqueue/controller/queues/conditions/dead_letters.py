"""DeadLetters: whether there are messages in the dead queue, and whether there are many."""

from __future__ import annotations

from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "DeadLetters"


def dead_letters(config: QueueConfig, count: int | None, settings: ConditionSettings) -> Condition:
    """Return DeadLetters for ``count`` messages in the dead queue; None: unknown."""
    if count is None:
        return Condition(_TYPE, None, "Unknown", "the dead queue cannot be counted at present")
    if count == 0:
        return Condition(_TYPE, False, "None", "no message is in the dead queue")
    messages = "1 message" if count == 1 else f"{count} messages"
    command = (
        f"kubectl exec -n {settings.operator_namespace} deploy/taskqueue-operator -- "
        f"python3 -m taskqueue dead-letters list {config.namespace}/{config.name}"
    )
    if count < settings.many_dead_letters:
        return Condition(_TYPE, True, "Kept", f"{messages} in the dead queue; to list: {command}")
    return Condition(
        _TYPE,
        True,
        "ManyKept",
        f"{messages} in the dead queue, {settings.many_dead_letters} or more are many: they stay "
        "on the broker's disk, and when that is full, the broker takes no message from anybody; "
        f"redrive or purge them; to list: {command}",
    )
