"""BrokerConnected: whether the queues are declared, and Tasks can be published."""

from __future__ import annotations

from taskqueue.model.queue import Condition, QueueConfig


def broker_connected(config: QueueConfig, session: Condition) -> Condition:
    """Return BrokerConnected: that of the broker session, unless the TaskQueue is being deleted."""
    if not config.deleting:
        return session
    text = "the TaskQueue is being deleted"
    if config.delete_queues:
        text += ", and its queues at the broker with it"
    return Condition(session.type, False, "Deleting", text)
