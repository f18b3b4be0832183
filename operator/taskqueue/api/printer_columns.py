"""The printer columns of ``kubectl get`` for each resource."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``; a wide one only of ``kubectl get -o wide``."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

TASKQUEUE_COLUMNS = (
    Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
    Column("Backlog", ".status.backlog", "integer"),
    Column("Running", ".status.running", "integer"),
    Column("Workers", ".status.replicas", "integer"),
    Column("Desired", ".status.desiredReplicas", "integer"),
    Column("Succeeded", ".status.totals.succeeded", "integer"),
    Column("Failed", ".status.totals.failed", "integer"),
    _AGE,
    Column("Scaling", ".status.scaling", wide=True),
    Column("Message", '.status.conditions[?(@.type=="Ready")].message', wide=True),
)

TASK_COLUMNS = (
    Column("Queue", ".spec.queue"),
    Column("Handler", ".spec.handler"),
    Column("Phase", ".status.phase"),
    Column("Attempts", ".status.attempts", "integer"),
    Column("Reason", ".status.reason"),
    # A column cannot show how long a Task took: it is a path to one field.
    Column("Finished", ".status.completionTime", "date"),
    _AGE,
    Column("Worker", ".status.worker", wide=True),
    # The operator reads finished Tasks by their columns: a date is shown as how long ago it was.
    Column("Completed", ".status.completionTime", wide=True),
    Column("TTL", ".spec.ttlSecondsAfterFinished", "integer", wide=True),
    Column("Message", ".status.message", wide=True),
)

TASKBATCH_COLUMNS = (
    Column("Queue", ".spec.queue"),
    Column("Phase", ".status.phase"),
    Column("Total", ".status.total", "integer"),
    Column("Succeeded", ".status.succeeded", "integer"),
    Column("Failed", ".status.failed", "integer"),
    Column("Percent", ".status.percent", "integer"),
    _AGE,
    Column("Handler", ".spec.template.spec.handler", wide=True),
    Column("Reason", ".status.reason", wide=True),
    Column("Message", ".status.message", wide=True),
)

TASKSCHEDULE_COLUMNS = (
    Column("Schedules", ".spec.schedules"),
    Column("Zone", ".spec.timeZone"),
    Column("Paused", ".status.paused", "boolean"),
    Column("Active", ".status.active", "integer"),
    Column("Last", ".status.lastScheduleTime", "date"),
    _AGE,
    Column("Next", ".status.nextTimes", wide=True),
    Column("Description", ".status.description", wide=True),
    Column("Message", '.status.conditions[?(@.type=="Ready")].message', wide=True),
)
