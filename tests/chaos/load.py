"""Tasks in every state of their life, and what must have become of them after any loss.

Runs are counted by the handlers themselves, in the logs of workers that are never lost here: a run
more than the status has attempts is a repeated one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from tests.e2e.api import Body
from tests.e2e.harness import FINISHED, Harness, Run
from tests.e2e.lifecycle_case import FromNow

#: The most messages at the broker; as many may run twice when the operator is lost.
WINDOW = 64
WORKERS, SLOTS = 2, 8
_KEYS = 3


@dataclass
class Load:
    """Tasks of one namespace; those that `start` creates succeed, with the given ``attempts``."""

    harness: Harness
    attempts: dict[str, int] = field(default_factory=dict)
    keyed: dict[str, list[str]] = field(default_factory=dict)
    suspended: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Make the TaskQueue, with all its workers there."""
        self.harness.queue(
            dispatch={"maxPublished": WINDOW},
            scaling={"minReplicas": WORKERS, "maxReplicas": WORKERS},
            workers={"concurrency": SLOTS},
        )
        self.harness.available(WORKERS)
        self.harness.processes.prepare()

    def start(self, *, short: int, long: int) -> None:
        """Create everything; most of it waits in the operator, behind a full window."""
        harness = self.harness
        brief: Body = {"payload": {"seconds": 0.3}}
        harness.create_core("configmaps", "later", data={})
        source = {"configMapKeyRef": {"name": "later", "key": "payload"}}
        self._add("blocked", 5, "nap", payloadFrom=[source])
        self._add("scheduled", 5, "nap", startAfter=FromNow(20).timestamp(), **brief)
        self._add("dependent", 5, "nap", dependsOn=["running-0"], **brief)
        self.suspended = self._add("suspended", 5, "nap", suspend=True, **brief)
        self._add("running", 4, "nap", payload={"seconds": 20})
        for key in range(_KEYS):
            # One claimed by an operator that was killed before it published is only tried again
            # when it would have timed out.
            keyed: Body = {"concurrencyKey": str(key), "attemptTimeoutSeconds": 20}
            names = self._add(f"keyed-{key}", 4, "tell_fence", payload={"seconds": 1}, **keyed)
            self.keyed[str(key)] = names
        retry = {"backoff": {"initialSeconds": 6}}
        self._add("retried", 10, "flaky", attempts=2, payload={"failures": 1}, retry=retry)
        # A window of these is not done yet when another operator takes over.
        self._add("long", long, "nap", payload={"seconds": 4})
        self._add("short", short, "nap", **brief)

    def release(self) -> None:
        """Let go what waits for somebody."""
        payload = {"data": {"payload": '{"seconds": 0.3}'}}
        self.harness.api.patch(self.harness.core("configmaps", "later"), payload)
        for name in self.suspended:
            self.harness.api.patch(self.harness.path("tasks", name), {"spec": {"suspend": False}})

    def finished(self) -> set[str]:
        """Return the names of Tasks seen finished."""
        return {
            name
            for name in self.attempts
            for last in self.harness.tasks.versions(name)[-1:]
            if last["status"]["phase"] in FINISHED
        }

    def wait_finished(self, number: int) -> None:
        """Return when at least ``number`` have finished."""
        self.harness.until(
            lambda: len(self.finished()) >= number, what=f"{number} finished", seconds=120
        )

    def assert_nothing_was_lost(self) -> None:
        """Fail unless each Task succeeded, after as many attempts as its handler needs."""
        names = list(self.attempts)
        statuses = dict(zip(names, self.harness.all_finished(names, seconds=150), strict=True))
        wrong = {
            name: status
            for name, status in statuses.items()
            if status["phase"] != "Succeeded"
            or [one["attempt"] for one in status["history"]]
            != list(range(1, self.attempts[name] + 1))
            or status["attempts"] != self.attempts[name]
        }
        assert not wrong
        self.harness.all_counted(len(names), uncounted=sum(self._ended_in_last_second(statuses)))

    def _ended_in_last_second(self, statuses: dict[str, Body]) -> Iterator[bool]:
        """Yield of each Task whether it ended in the last second of an operator that was killed.

        A few seconds: the totals are written each second, and a write takes time on a busy machine.
        """
        for status in statuses.values():
            ended = datetime.fromisoformat(status["completionTime"]).timestamp()
            yield any(
                killed - 4.0 <= ended <= killed + 0.5 for killed in self.harness.operator_kills
            )

    def runs(self) -> dict[str, list[Run]]:
        """Return all runs by Task, of workers that were there all the time."""
        pods = self.harness.pods()
        containers = [one for pod in pods for one in pod["status"]["containerStatuses"]]
        assert [one["restartCount"] for one in containers] == [0] * WORKERS
        uids = {self._latest(name)["metadata"]["uid"]: name for name in self.attempts}
        found: dict[str, list[Run]] = {name: [] for name in self.attempts}
        for run in self.harness.runs():
            found[uids[run.uid]].append(run)
        return found

    def repeated(self) -> dict[str, int]:
        """Return how often Tasks ran beyond their attempts, by name; fail if one ran too rarely."""
        extra: dict[str, int] = {}
        for name, runs in self.runs().items():
            by_attempt = Counter(run.attempt for run in runs)
            assert set(by_attempt) == set(range(1, self.attempts[name] + 1)), (name, runs)
            more = len(runs) - self.attempts[name]
            if more:
                extra[name] = more
        return extra

    def assert_not_run_after(self, names: set[str], moment: datetime) -> None:
        """Fail if one of these, which had finished, was begun again."""
        run_again = {
            name: runs
            for name, runs in self.runs().items()
            if name in names and any(run.began > moment for run in runs)
        }
        assert not run_again

    def assert_keys_were_kept(self) -> None:
        """Fail if two runs of a concurrencyKey overlap."""
        runs = self.runs()
        for names in self.keyed.values():
            spans = sorted(
                ((run.began, run.ended) for name in names for run in runs[name]),
                key=lambda span: span[0],
            )
            for (_, ended), (began, _) in pairwise(spans):
                assert ended is not None
                assert ended <= began, spans

    def _add(
        self, prefix: str, count: int, handler: str, *, attempts: int = 1, **spec: Any
    ) -> list[str]:
        names = self.harness.batch(prefix, count, handler, **spec)
        self.attempts |= dict.fromkeys(names, attempts)
        return names

    def _latest(self, name: str) -> Body:
        return self.harness.tasks.versions(name)[-1]
