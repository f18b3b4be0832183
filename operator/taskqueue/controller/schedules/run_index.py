"""The Tasks of all schedules, as their informer shows them and as they are created."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from taskqueue.kubernetes.informer import Key, identity
from taskqueue.kubernetes.schedule_codec import owner_of, read_run
from taskqueue.logs import EventLog
from taskqueue.model.schedule import ScheduledRun

log = EventLog(__name__)

_DELETED_KEPT = 1000


class RunIndex:
    """Knows the runs of each schedule; handles the events of an informer of Tasks with its label.

    A label may be anybody's: a run is a Task whose controller is the schedule.

    Args:
        on_change: called with the uid of the schedule whose runs have changed.
    """

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._runs: dict[str, dict[str, ScheduledRun]] = {}
        self._owners: dict[Key, str] = {}
        #: Uids of Tasks that were deleted: one may be shown so before its creation is answered.
        self._deleted: deque[str] = deque(maxlen=_DELETED_KEPT)

    def of(self, schedule: str) -> Mapping[str, ScheduledRun]:
        """Return the runs of the schedule with this uid, by their names."""
        return self._runs.get(schedule, {})

    def find(self, key: Key) -> tuple[str, ScheduledRun] | None:
        """Return the uid of the schedule and the run with this key; None: it is no run."""
        owner = self._owners.get(key)
        return None if owner is None else (owner, self._runs[owner][key[1]])

    def put(self, schedule: str, namespace: str, run: ScheduledRun) -> None:
        """Add or replace a run, unless it is deleted already."""
        if run.uid in self._deleted:
            return
        if self._owners.get((namespace, run.name), schedule) != schedule:
            self._remove((namespace, run.name))
        self._runs.setdefault(schedule, {})[run.name] = run
        self._owners[namespace, run.name] = schedule

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take note of a Task that is new or changed."""
        key, uid = identity(raw)
        owner = ""
        try:
            owner = owner_of(raw)
            run = read_run(raw) if owner else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("run.unreadable", namespace=key[0], task=key[1], uid=uid, error=str(error))
            run = None
        if run is None:
            self._remove(key)
            return
        before = self._runs.get(owner, {}).get(run.name)
        if run != before:
            self.put(owner, key[0], run)
            self._on_change(owner)

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Take what can be read of a Task: the upper levels of it say what became of it."""
        self.on_upserted(raw)

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Take note that a Task was deleted."""
        self._deleted.append(uid)
        found = self.find(key)
        if found is not None and found[1].uid == uid:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        owner = self._owners.pop(key, None)
        if owner is None:
            return
        runs = self._runs[owner]
        del runs[key[1]]
        if not runs:
            del self._runs[owner]
        self._on_change(owner)
