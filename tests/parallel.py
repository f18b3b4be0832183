"""How tests share one cluster when pytest-xdist runs them side by side.

Work is handed out by file: the tests of a file share a namespace, and most of their time is
waiting. A test that needs the cluster holds it *shared*, and the operator too when it uses the
harness. `EXCLUSIVE` names the files whose tests need the operator, or the whole cluster, for
themselves. The locks are files, so two runs on one cluster respect each other as well. Without
xdist nothing waits for anything.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from devcluster.paths import DEFAULT_NAME, cache
from tests.run_times import RunTimes

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent

#: In this order they are locked; whoever holds the operator holds the cluster, too.
_RESOURCES = ("cluster", "operator")

#: Files whose tests disturb others: they kill or replace the operator, RabbitMQ or programs of the
#: node, or count what the API server does for all namespaces.
EXCLUSIVE = {
    "operator": (
        "e2e/test_batches_operator_loss.py",
        "e2e/test_lifecycle_cases_operator_loss.py",
        "e2e/test_notifications_operator_loss.py",
        "e2e/test_operator_loss.py",
        "e2e/test_schedules_operator_loss.py",
        "e2e/test_takeover.py",
        "chaos/test_operator_absence.py",
        "chaos/test_operator_loss.py",
        "faults/test_operator.py",
    ),
    "cluster": (
        "integration/operator/test_api_writes.py",
        "e2e/test_broker_restart.py",
        "faults/test_processes.py",
    ),
}

#: Files whose tests wait for the operator without a harness.
_NEED_OPERATOR = ("integration/client/test_tasks.py",)

#: Files and a folder whose harness has operators of its own, or none.
_OWN_HARNESS = (
    "e2e/test_installations.py",
    "e2e/test_many_finished_tasks.py",
    "e2e/test_skew_older_operator.py",
    "integration/worker",
)

#: Files whose tests take long, longest first: started early, they are not what the end waits for.
LONG_FILES = (
    "chaos/test_spare_node.py",
    "e2e/test_worker_loss.py",
    "e2e/test_lifecycle_cases.py",
    "chaos/test_worker_pods.py",
    "e2e/test_pool_trouble.py",
    "chaos/test_worker_steps.py",
    "chaos/test_network_breaks.py",
    "e2e/test_archive.py",
    "integration/operator/test_messages.py",
    "e2e/test_heartbeats.py",
    "e2e/test_credentials.py",
    "e2e/test_schedules.py",
    "faults/test_broker.py",
    "e2e/test_skew.py",
    "e2e/test_skew_older_operator.py",
    "e2e/test_restore.py",
    "e2e/test_dead_letters.py",
    "e2e/test_client.py",
    "e2e/test_signal.py",
    "e2e/test_deletion.py",
    "e2e/test_results.py",
    "e2e/test_guides.py",
    "e2e/test_scaling.py",
    "e2e/test_go_worker.py",
    "e2e/test_shrinking.py",
    "integration/amqp/test_statistics.py",
    "conformance/test_conformance.py",
    "fuzz/test_coverage.py",
    "integration/worker/test_children.py",
    "e2e/test_devcluster.py",
    "integration/amqp/test_dead_queue.py",
    "integration/gitops/test_health.py",
    "unit/simulation/test_goals.py",
    "unit/simulation/test_operator.py",
    "unit/controller/test_random_lives.py",
    "unit/worker/test_child_executor_ends.py",
    "unit/controller/pool/test_autoscaler_properties.py",
    "unit/controller/pool/test_drain_plan_model.py",
)

#: Folders whose tests need no cluster, but for these files.
_WITHOUT_CLUSTER = ("unit", "fuzz")
_BUT_FOR = ("fuzz/test_broker.py",)

#: The first test that needs the cluster may have to wait until Kubernetes is built.
_BUILD_SECONDS = 3600

#: Of the tests that this process ran.
RUN_TIMES = RunTimes()

_Needs = Mapping[str, int]
_CLUSTER_AWAITED = pytest.StashKey[bool]()


class Locks:
    """Holds what the present test needs, until a test needs something else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[IO[str]] = []

    def hold(self, needs: _Needs) -> None:
        """Lock each resource as asked for, `fcntl.LOCK_SH` or `fcntl.LOCK_EX`; wait for it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for resource in _RESOURCES:
            if resource in needs:
                file = (self._folder / f"{resource}.lock").open("w")
                self._files.append(file)
                fcntl.flock(file, needs[resource])

    @property
    def are_held(self) -> bool:
        """Whether anything is locked."""
        return bool(self._files)

    def release(self) -> None:
        """Unlock everything."""
        for file in self._files:
            file.close()
        self._files.clear()


_LOCKS = Locks(cache() / "tests" / DEFAULT_NAME)


def needs_of(item: pytest.Item) -> _Needs:
    """Return what a test needs of the cluster, by its file and the fixtures it uses."""
    if _needs_no_cluster(_file(item)):  # whatever their own fixtures are called
        return {}
    fixtures: list[str] = getattr(item, "fixturenames", [])
    exclusive = _exclusive(_file(item))
    if exclusive == "cluster":
        return {"cluster": fcntl.LOCK_EX}
    if exclusive == "operator":
        return {"cluster": fcntl.LOCK_SH, "operator": fcntl.LOCK_EX}
    shares_operator = "harness" in fixtures and not _file(item).startswith(_OWN_HARNESS)
    if shares_operator or _file(item) in _NEED_OPERATOR:
        return {"cluster": fcntl.LOCK_SH, "operator": fcntl.LOCK_SH}
    if {"cluster", "kubectl", "rabbitmq", "broker_endpoint"}.intersection(fixtures):
        return {"cluster": fcntl.LOCK_SH}
    return {}


def _group(needs: _Needs) -> str:
    """Return what tests with these needs are called in the summary."""
    strongest = {fcntl.LOCK_SH: "beside others", fcntl.LOCK_EX: "alone"}
    for resource in reversed(_RESOURCES):
        if resource in needs:
            return f"with the {resource}, {strongest[needs[resource]]}"
    return "without a cluster"


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).as_posix()


def _exclusive(file: str) -> str:
    """Return what the tests of a file need for themselves; "": nothing."""
    return next((resource for resource, files in EXCLUSIVE.items() if file in files), "")


def _rank(item: pytest.Item) -> tuple[int, int]:
    """Order for one process: what needs less comes first, what disturbs others last."""
    parts = ("unit", "fuzz", "integration", "conformance", "faults", "e2e", "chaos")
    part = item.path.relative_to(TESTS).parts[0]
    exclusive = ("", *EXCLUSIVE).index(_exclusive(_file(item)))
    return exclusive, parts.index(part) if part in parts else len(parts)


def _parallel_rank(item: pytest.Item) -> tuple[int, int]:
    """Order for several: exclusive tests run beside those that do not mind them.

    One after the other are those that share the operator, those that need it for themselves, and
    those that need the cluster for themselves: the run takes at least as long as these. All others
    fill the time beside the last two.
    """
    file = _file(item)
    is_long = file in LONG_FILES
    needs = needs_of(item)
    match _exclusive(file):
        case "cluster":
            phase = 4
        case "operator":
            phase = 1
        case _ if "operator" in needs:
            phase = 0
        case _ if needs:
            phase = 2 if is_long else 3
        case _:
            phase = 5
    return phase, LONG_FILES.index(file) if is_long else len(LONG_FILES)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring tests into their order."""
    items.sort(key=_parallel_rank if hasattr(config, "workerinput") else _rank)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Hold what the test needs; waiting for it is no part of the test's time."""
    needs = needs_of(item)
    if needs and not item.config.stash.get(_CLUSTER_AWAITED, False):
        item.config.stash[_CLUSTER_AWAITED] = True
        item.add_marker(pytest.mark.timeout(_BUILD_SECONDS), append=False)
    if needs and not _LOCKS.are_held:
        _LOCKS.hold(needs)
    try:
        with RUN_TIMES.measuring(_group(needs), _file(item)):
            return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path or needs_of(nextitem) != needs:
            _LOCKS.release()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Hand tests out by file, in the order in which they were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        """A file is a unit of work, and so are all files that need the same for themselves.

        Until the cluster is there, only the first process gets tests that need it. It makes the
        cluster and deploys, and the others would wait: for minutes on a new machine.
        """

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].removeprefix(f"{TESTS.name}/")
            return _exclusive(file) or file

        def _assign_work_unit(self, node: object) -> None:
            if node is not self.nodes[0] and self._is_cluster_awaited():
                # The short ones, so that it is soon done with them when the cluster is there.
                for scope in filter(_needs_no_cluster, reversed(self.workqueue)):
                    self.workqueue.move_to_end(scope, last=False)
                    break
            super()._assign_work_unit(node)

        def _is_cluster_awaited(self) -> bool:
            made = config.getoption("cluster") != "own" or cluster_note(config).exists()
            return not made and not all(map(_needs_no_cluster, self.workqueue))

    config.option.loadscopereorder = False
    return ByFile(config, log)


def cluster_note(config: pytest.Config) -> Path:
    """Return where the process that made the cluster notes for the others how it is reached."""
    basetemp: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return (basetemp.parent if hasattr(config, "workerinput") else basetemp) / "cluster.json"


def _needs_no_cluster(file: str) -> bool:
    return file.partition("/")[0] in _WITHOUT_CLUSTER and file not in _BUT_FOR


def assert_exclusive(resource: str) -> None:
    """Fail unless the file of the running test has this for itself: see `EXCLUSIVE`."""
    file = os.environ["PYTEST_CURRENT_TEST"].partition("::")[0].removeprefix(f"{TESTS.name}/")
    assert _exclusive(file) == resource, f"add {file} to EXCLUSIVE[{resource!r}] in {__file__}"


def runs_in_parallel() -> bool:
    """Whether this process is one of several workers of pytest-xdist."""
    return "PYTEST_XDIST_WORKER" in os.environ
