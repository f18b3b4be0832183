"""A Task lives in `taskqueue dev` as in a cluster: the lifecycle cases of the tests end to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.case_runner import CaseRunner, RunningCase, object_prefix
from tests.e2e.lifecycle_case import SHARED_QUEUES, LifecycleCase, Queue
from tests.e2e.lifecycle_cases import cancel, depend, keys, retry, suspend, time
from tests.unit.dev.desk import Desk, DeskHarness, needed_steps

#: What a case needs a cluster for: another broker client, workers or an operator that die, a pool
#: that has no workers, deletion after a time to live, and a writer of statuses beside the operator.
NEEDS_CLUSTER = {
    *("broker_has", "broker_loses_messages", "broker_loses_queue"),
    *("consumer_receives", "consumer_reports"),
    *("deleted_by_operator", "late_status", "no_worker_left", "operator_killed"),
    *("queue_has_condition", "worker_killed", "workers_added", "workers_rolled_out"),
}
#: A handler that ends the worker's process, and one that only another image has.
NOT_HERE = {"die", "newcomer"}
#: The grace period of a pod.
OF_PODS = {"TaskQueue deleted, a worker has no time to end its Task: it is run again"}

ALL = (*time.CASES, *retry.CASES, *suspend.CASES, *keys.CASES, *cancel.CASES, *depend.CASES)


def runs_here(case: LifecycleCase) -> bool:
    handlers = {spec["handler"] for spec in case.given.values()}
    on = SHARED_QUEUES[case.on] if isinstance(case.on, str) else case.on
    without_workers = (
        isinstance(on, Queue)
        and "template" in on.changes.get("workers", {})
        and (on.changes["workers"]["template"] is None)
    )
    steps = needed_steps([*case.when, *case.also])
    if case.title in OF_PODS or without_workers:
        return False
    return not (steps & NEEDS_CLUSTER or handlers & NOT_HERE)


CASES = [case for case in ALL if runs_here(case)]


class DeskRunner(CaseRunner):
    def start(self) -> None:
        for name in sorted({case.on for case in self._cases if isinstance(case.on, str)}):
            self._harness.queue(name, **SHARED_QUEUES[name].changes)
        for case in self._cases:
            running = RunningCase(self._harness, case, object_prefix(case), self)
            self._futures[case.title] = self._pool.submit(running.run)


@pytest.fixture(scope="module")
def case_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaseRunner]:
    desk = Desk(
        tmp_path_factory.mktemp("desk"),
        *("tests.e2e.handlers", "--strict-queues", "--no-watch", "--slots", "100"),
        TASKQUEUE_LOG_FORMAT="json",
        POD_NAME="dev",
    )
    try:
        runner = DeskRunner(DeskHarness(desk), CASES)
        runner.start()
        yield runner
        runner.close()
    finally:
        desk.stop()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_lifecycle_case_holds_on_a_desk(case: LifecycleCase, case_runner: CaseRunner) -> None:
    case_runner.wait_finished(case)


def test_most_lifecycle_cases_run_on_a_desk() -> None:
    assert len(CASES) >= 95, len(CASES)
