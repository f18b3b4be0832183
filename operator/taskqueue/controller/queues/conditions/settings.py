"""What an installer decides about the conditions of all TaskQueues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taskqueue.defaults import DEFAULT_MANY_DEAD_LETTERS, DEFAULT_MANY_FINISHED_TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionSettings:
    """What conditions need to know of the operator.

    Attributes:
        operator_namespace: where it runs, for commands in messages.
        many_finished_tasks: so many finished Tasks of a namespace are many.
        many_dead_letters: so many messages in a dead queue are many.
    """

    operator_namespace: str
    many_finished_tasks: int = DEFAULT_MANY_FINISHED_TASKS
    many_dead_letters: int = DEFAULT_MANY_DEAD_LETTERS

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, operator_namespace: str
    ) -> ConditionSettings:
        """Read TASKQUEUE_MANY_FINISHED_TASKS and TASKQUEUE_MANY_DEAD_LETTERS.

        Raises:
            ValueError: one of them is not a whole number above zero.
        """
        return cls(
            operator_namespace=operator_namespace,
            many_finished_tasks=_count(
                environment, "TASKQUEUE_MANY_FINISHED_TASKS", DEFAULT_MANY_FINISHED_TASKS
            ),
            many_dead_letters=_count(
                environment, "TASKQUEUE_MANY_DEAD_LETTERS", DEFAULT_MANY_DEAD_LETTERS
            ),
        )


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{name}: {text!r} is not a number of objects: use a whole number above 0")
    return int(text)
