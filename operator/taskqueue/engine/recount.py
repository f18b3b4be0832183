"""Counts the finished Tasks there are, to mend the totals after a leader that was killed.

Totals are in the TaskQueue's status, which is written once a second at most: what finished after
the last write of a leader that died is missing there. So a new leader counts once, page by page
and beside everything else, and raises a total that is too low. Tasks deleted meanwhile are not
found again; none is counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.cluster.task_objects import FINISHED, TASKS_PATH, seconds_of
from taskqueue.domain.queue import QueueKey
from taskqueue.domain.task import Phase
from taskqueue.engine.queue_controller import QueueController
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Objects a page: a page is parsed in one go, while outcomes wait.
_PAGE = 250


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """What counts of a finished Task; ``ttl`` is its own, in seconds."""

    uid: str
    queue: QueueKey
    phase: Phase
    completed: float
    name: str = ""
    ttl: int | None = None


async def finished_tasks(
    client: ApiClient, *, path: str = TASKS_PATH, selector: str = FINISHED
) -> list[FinishedTask]:
    """Return every finished Task there is, or those at a path that a field selector picks.

    Raises:
        ApiError: the list was refused or broke off.
    """
    found: list[FinishedTask] = []
    token = ""
    while True:
        params = {"limit": str(_PAGE), "fieldSelector": selector}
        if token:
            params["continue"] = token
        page = await client.request("GET", path, params=params)
        found += [_read(raw) for raw in page["items"]]
        token = page["metadata"].get("continue", "")
        if not token:
            return found


def count(
    tasks: list[FinishedTask],
    *,
    but: Callable[[str], bool],
    since: Callable[[QueueKey], float | None],
) -> dict[QueueKey, Counter[Phase]]:
    """Count by queue and final phase.

    Args:
        tasks: all there are.
        but: tells the uids not to count.
        since: when the TaskQueue was created, before which nothing is its own; None: it is gone.
    """
    counts: dict[QueueKey, Counter[Phase]] = {}
    for task in tasks:
        created = since(task.queue)
        if created is not None and task.completed >= created and not but(task.uid):
            counts.setdefault(task.queue, Counter())[task.phase] += 1
    return counts


def _read(raw: Mapping[str, Any]) -> FinishedTask:
    metadata, status = raw["metadata"], raw["status"]
    at = status.get("completionTime") or metadata["creationTimestamp"]
    return FinishedTask(
        uid=metadata["uid"],
        queue=(metadata["namespace"], raw["spec"]["queue"]),
        phase=Phase(status["phase"]),
        completed=seconds_of(at),
        name=metadata["name"],
        ttl=raw["spec"].get("ttlSecondsAfterFinished"),
    )


class Recount:
    """Raises the totals by what the leader before this one finished and did not count.

    Args:
        client: for the API server.
        held: the Tasks, by uid, that this leader will count itself.
    """

    def __init__(self, client: ApiClient, *, held: Container[str]) -> None:
        self._client = client
        self._held = held
        #: Finished and counted by this leader, while the finished Tasks are being listed.
        self._counted: set[str] | None = None

    def counted(self, uid: str) -> None:
        """Take note that this leader has counted a Task."""
        if self._counted is not None:
            self._counted.add(uid)

    async def run(self, controllers: Mapping[QueueKey, QueueController]) -> None:
        """Count once; what cannot be listed is left as it is."""
        recorded = {key: replace(one.totals) for key, one in controllers.items()}
        ours: set[str] = set()
        self._counted = ours
        try:
            counts = count(
                await finished_tasks(self._client),
                but=lambda uid: uid in ours or uid in self._held,
                since=lambda key: controllers[key].created if key in controllers else None,
            )
        except ApiError as problem:
            log.warning("totals.not_recounted", problem=str(problem))
            return
        finally:
            self._counted = None
        for key, by_phase in counts.items():
            for phase, number in by_phase.items():
                missing = number - recorded[key].of(phase)
                if missing > 0:
                    controllers[key].totals.add(phase, missing)
                    log.info(
                        "totals.raised", namespace=key[0], queue=key[1], phase=phase, by=missing
                    )
