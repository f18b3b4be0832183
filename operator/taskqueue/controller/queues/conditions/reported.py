"""Which conditions of a TaskQueue have Kubernetes Events: those that a person has to act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from taskqueue.model.queue import Condition

#: Conditions that should be True, and reasons for False that pass by themselves.
_WANTED = (
    "BrokerConnected",
    "CredentialsReady",
    "WorkersAvailable",
    "ResultStoreReady",
    "ArchiveConnected",
    "WebhooksDelivered",
)
_PASSING = ("Starting", "Connecting", "ReadingInbox", "Deleting", "WorkersElsewhere")
#: Conditions that should be False, and the reason that is trouble.
_UNWANTED: Mapping[str, str] = {"DeadLetters": "ManyKept", "ManyFinishedTasks": "FinishedTasksKept"}


def reported(condition: Condition) -> Condition:
    """Return a condition with the status True: no trouble, False: trouble, None: neither."""
    status: bool | None = None
    if condition.type in _WANTED and condition.reason not in _PASSING:
        status = condition.status
    elif condition.type in _UNWANTED and condition.status is not None:
        status = condition.reason != _UNWANTED[condition.type]
    return replace(condition, status=status)
