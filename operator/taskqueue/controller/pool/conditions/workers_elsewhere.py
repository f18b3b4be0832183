"""WorkersElsewhere: the reason of both conditions while the operator runs no workers."""

from __future__ import annotations

from taskqueue.model.queue import Condition


def workers_elsewhere(kind: str, status: bool | None) -> Condition:
    """Return a condition that says that workers run elsewhere."""
    return Condition(
        kind,
        status,
        "WorkersElsewhere",
        "spec.workers has neither template nor scaleTargetRef: workers that run elsewhere are "
        "not counted and not scaled",
    )
