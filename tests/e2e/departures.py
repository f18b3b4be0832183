"""When pods were taken away, seen from outside, and whether anything was lost by that."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tests.bench.removals import Removal, busy_pods, runs_in_status
from tests.e2e.api import Body
from tests.e2e.harness import Harness
from tests.e2e.observations import Sightings


class Departures(Sightings):
    """The pods of a test namespace, and when each received its termination request."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        #: By name and uid: a StatefulSet gives names again.
        self._left: dict[tuple[str, str], float] = {}
        super().__init__(harness.api, harness.core("pods"))

    def told_to_go(self, pod: str) -> bool:
        """Tell whether a pod of this name was ever told to go."""
        return any(name == pod for name, _ in dict(self._left))

    def assert_unharmed(self, names: Iterable[str]) -> None:
        """Fail unless these Tasks have all succeeded in one go, and no pod left under one.

        In one go: one attempt, never taken back, on one worker, as every version of the Task says.
        """
        lasts = []
        for name in names:
            versions = self._harness.tasks.versions(name)
            lasts.append(versions[-1])
            status = versions[-1]["status"]
            told = (status["phase"], status["attempts"], status.get("epoch", 0))
            assert told == ("Succeeded", 1, 0), f"{name}: {status}"
            workers = {one["status"].get("worker", "") for one in versions} - {""}
            assert workers == {status["result"]["pod"]}, f"{name} ran in {workers}"
        runs = runs_in_status(lasts)
        assert {run.task for run in runs} == {last["metadata"]["name"] for last in lasts}
        removals = [Removal(pod, at) for (pod, _), at in dict(self._left).items()]
        assert not busy_pods(removals, runs), "pods were removed under their work"

    def _take(self, kind: str, seen: Body) -> None:
        if kind == "DELETED" or "deletionTimestamp" in seen["metadata"]:
            metadata = seen["metadata"]
            self._left.setdefault((metadata["name"], metadata["uid"]), time.time())
        super()._take(kind, seen)


def names_of(pods: Iterable[Body]) -> set[str]:
    """Return the names of pods."""
    return {pod["metadata"]["name"] for pod in pods}
