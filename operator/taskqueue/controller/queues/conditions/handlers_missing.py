"""HandlersMissing: whether Tasks wait for handlers that no worker knows."""

from __future__ import annotations

from taskqueue.controller.tasks.missing_handlers import UNKNOWN_HANDLER, MissingHandlers
from taskqueue.model.queue import Condition

_TYPE = "HandlersMissing"
#: Handlers named in a message; the others are counted.
_NAMES_SHOWN = 5


def handlers_missing(missing: MissingHandlers) -> Condition:
    """Return HandlersMissing, which names some of the handlers."""
    if not missing.handlers:
        return Condition(_TYPE, False, "None", "no Task waits for a handler that no worker knows")
    names = ", ".join(missing.first(_NAMES_SHOWN))
    more = len(missing.handlers) - _NAMES_SHOWN
    return Condition(
        _TYPE,
        True,
        UNKNOWN_HANDLER,
        f"no worker knows {names}{f' and {more} more' if more > 0 else ''}: "
        f"{missing.task_count} Tasks are Blocked and tried again with growing pauses: roll out "
        "workers that know these handlers, or delete the Tasks",
    )
