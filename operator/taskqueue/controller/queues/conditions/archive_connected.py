"""ArchiveConnected: whether the ends of Tasks are written to the archive; absent without one."""

from __future__ import annotations

from taskqueue.controller.queues.conditions.sink_state import MANY_WAITING, SinkState
from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "ArchiveConnected"


def archive_connected(
    config: QueueConfig, state: SinkState | None, *, waiting: int | None, is_behind: bool
) -> tuple[Condition, ...]:
    """Return ArchiveConnected, or nothing where there is no archive.

    Args:
        config: what the TaskQueue asks for.
        state: of the archive; None: there is none.
        waiting: ends in the outbox; None: unknown.
        is_behind: ends may be missing in both, such as because the outbox was full.
    """
    if config.archive is None or state is None:
        return ()
    ends = "" if waiting is None else f"{waiting} ends of Tasks wait in the outbox at the broker"
    if not state.connected:
        what = state.message or "the operator is connecting to the archive"
        if state.connected is False:
            what = f"spec.archive: {what}"
        if is_behind:
            what += "; the outbox is full, or was: finished Tasks stay until they are archived"
        elif ends:
            what += f"; {ends}, and are written when it is back"
        return (Condition(_TYPE, state.connected, state.reason, what),)
    if is_behind:
        text = "ends may be missing: they are looked for among the finished Tasks, which stay until"
        return (Condition(_TYPE, True, "Backfilling", f"{text} they are archived"),)
    if waiting is not None and waiting > MANY_WAITING:
        return (Condition(_TYPE, True, "Behind", f"{ends}, and are being written"),)
    return (Condition(_TYPE, True, "Connected", "ends of Tasks are written to the archive"),)
