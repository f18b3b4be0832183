"""When each condition took its present status: lastTransitionTime."""

from __future__ import annotations

from collections.abc import Mapping

from taskqueue.model.queue import Condition


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
