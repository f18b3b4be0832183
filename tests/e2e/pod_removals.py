"""When pods were deleted, by a watch, and whether that interrupted any Task."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tests.bench.removals import Removal, busy_pods, runs_in_status
from tests.e2e.api import Body
from tests.e2e.harness import Harness
from tests.e2e.observations import Observations


class PodRemovals(Observations):
    """Records when each pod of a test namespace was deleted."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        #: By name and uid: a StatefulSet uses names again.
        self._removed: dict[tuple[str, str], float] = {}
        super().__init__(harness.api, harness.core("pods"))

    def was_removed(self, pod: str) -> bool:
        """Return whether a pod of this name was ever deleted."""
        return any(name == pod for name, _ in dict(self._removed))

    def assert_unharmed(self, names: Iterable[str]) -> None:
        """Fail unless all these Tasks succeeded undisturbed, and no pod was deleted that ran one.

        Undisturbed: one attempt, never recalled, on one worker, in every version of the Task.
        """
        lasts = []
        for name in names:
            versions = self._harness.tasks.versions(name)
            lasts.append(versions[-1])
            status = versions[-1]["status"]
            summary = (status["phase"], status["attempts"], status.get("epoch", 0))
            assert summary == ("Succeeded", 1, 0), f"{name}: {status}"
            workers = {one["status"].get("worker", "") for one in versions} - {""}
            assert workers == {status["result"]["pod"]}, f"{name} ran in {workers}"
        runs = runs_in_status(lasts)
        assert {run.task for run in runs} == {last["metadata"]["name"] for last in lasts}
        removals = [Removal(pod, at) for (pod, _), at in dict(self._removed).items()]
        assert not busy_pods(removals, runs), "busy pods were deleted"

    def _record(self, kind: str, version: Body) -> None:
        if kind == "DELETED" or "deletionTimestamp" in version["metadata"]:
            metadata = version["metadata"]
            self._removed.setdefault((metadata["name"], metadata["uid"]), time.time())
        super()._record(kind, version)


def names_of(pods: Iterable[Body]) -> set[str]:
    """Return the names of pods."""
    return {pod["metadata"]["name"] for pod in pods}
