"""ManyFinishedTasks: whether so many finished Tasks are kept that etcd may become full.

The number is that of the namespace: Tasks whose TaskQueue is deleted fill etcd as well.
"""

from __future__ import annotations

from taskqueue.api.common import GROUP
from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "ManyFinishedTasks"


def many_finished_tasks(config: QueueConfig, count: int | None, threshold: int) -> Condition:
    """Return ManyFinishedTasks for ``count`` finished Tasks; 0: few, None: unknown.

    Args:
        config: what the TaskQueue asks for.
        count: in its namespace.
        threshold: how many are many.
    """
    where = f"namespace {config.namespace}"
    if count is None:
        return Condition(_TYPE, None, "Unknown", f"the Tasks of {where} are not counted yet")
    if count == 0:
        return Condition(_TYPE, False, "Few", f"fewer than {threshold} finished Tasks in {where}")
    return Condition(
        _TYPE,
        True,
        "FinishedTasksKept",
        f"{count} finished Tasks are kept in {where}, {threshold} or more are many: each is an "
        "object in etcd, and when etcd has reached its quota, nobody can write anything in the "
        "cluster; set spec.taskDefaults.ttlSecondsAfterFinished, which deletes those that exist, "
        "too, or delete what is not needed: kubectl delete "
        f"tasks.{GROUP} -n {config.namespace} --field-selector status.phase=Succeeded",
    )
