"""The order and the locks of tests that run side by side, and what the summary says of them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import parallel
from tests.run_times import RunTimes

OPERATOR_FILE = "tests/e2e/test_scaling.py"
UNIT_FILES = [f"tests/unit/test_{letter}.py" for letter in "abc"]


def item(file: str, *fixtures: str) -> pytest.Item:
    made = SimpleNamespace(path=parallel.TESTS / file, fixturenames=list(fixtures))
    return cast(pytest.Item, made)


def test_files_that_are_named_exist() -> None:
    named = [*parallel.LONG_FILES, *(one for files in parallel.EXCLUSIVE.values() for one in files)]
    named += [*parallel._NEED_OPERATOR, *parallel._OWN_HARNESS, *parallel._BUT_FOR]
    assert not [one for one in named if not (parallel.TESTS / one).exists()]


def test_a_unit_test_holds_nothing_whatever_its_fixtures_are_called() -> None:
    assert parallel.needs_of(item("unit/test_a.py", "cluster")) == {}
    assert parallel.needs_of(item("fuzz/test_broker.py", "cluster")).keys() == {"cluster"}


@pytest.mark.parametrize(
    "file", ["e2e/test_many_finished_tasks.py", "integration/worker/test_a.py"]
)
def test_a_harness_that_the_operator_does_not_serve_does_not_hold_it(file: str) -> None:
    assert "operator" in parallel.needs_of(item("e2e/test_scaling.py", "harness", "kubectl"))
    assert parallel.needs_of(item(file, "harness", "kubectl")).keys() == {"cluster"}


def test_what_must_run_one_after_the_other_begins_first_and_unit_tests_last() -> None:
    ordered = [
        item("chaos/test_spare_node.py", "harness"),
        item("e2e/test_a.py", "harness"),
        item("e2e/test_takeover.py", "harness"),
        item("conformance/test_conformance.py", "broker_endpoint"),
        item("integration/amqp/test_a.py", "broker_endpoint"),
        item("e2e/test_broker_restart.py", "harness"),
        item("fuzz/test_coverage.py"),
        item("unit/test_a.py"),
    ]
    assert sorted(reversed(ordered), key=parallel._parallel_rank) == ordered


class Node:
    """A process of pytest-xdist, which is told the numbers of its tests."""

    shutting_down = False
    gateway = SimpleNamespace(id="gw")

    def __init__(self) -> None:
        self.given: list[int] = []

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.given += numbers

    def shutdown(self) -> None: ...


def test_processes_run_unit_tests_until_the_first_one_has_made_the_cluster(tmp_path: Path) -> None:
    tests = [f"{OPERATOR_FILE}::test_{number}" for number in range(4)]
    tests += [f"tests/e2e/test_{name}.py::test_it" for name in ("client", "hpa", "signal")]
    tests += [f"{file}::test_{number}" for file in UNIT_FILES for number in range(3)]
    temporary = SimpleNamespace(getbasetemp=lambda: tmp_path)
    config: Any = SimpleNamespace(option=SimpleNamespace(), _tmp_path_factory=temporary)
    config.getvalue = lambda _: ["popen"] * 2
    config.getoption = {"cluster": "own"}.get
    log = logging.getLogger("test")  # stands for xdist's producer of logs
    log.loadscopesched = lambda *_: None  # type: ignore[attr-defined]
    scheduler: Any = parallel.pytest_xdist_make_scheduler(config, log)
    first, other = nodes = [Node(), Node()]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, tests)
    scheduler.schedule()

    def files(node: Node) -> list[str]:
        return list(dict.fromkeys(Path(tests[one].partition("::")[0]).stem for one in node.given))

    assert (files(first), files(other)) == (["test_scaling"], ["test_c"])
    scheduler.mark_test_complete(other, other.given[0])
    assert files(other) == ["test_c", "test_b"]
    parallel.cluster_note(config).write_text("[]")
    for number in other.given[1:4]:
        scheduler.mark_test_complete(other, number)
    assert files(other) == ["test_c", "test_b", "test_client"]
    config.workerinput = {}
    assert parallel.cluster_note(config) == tmp_path.parent / "cluster.json"


def test_the_summary_has_groups_in_order_and_names_long_files_that_begin_late() -> None:
    first, second = RunTimes(), RunTimes()
    first.load([{"alone": [130.0, 250.0, 120.0, 7.0]}, {"e2e/test_a.py": [130.0, 250.0, 120, 7]}])
    second.load([{"shared": [100.0, 190.0, 80.0, 3.0]}, {"e2e/test_b.py": [100.0, 190.0, 80, 3]}])
    first.load(second.dump())
    assert list(first.lines(early=["e2e/test_a.py"])) == [
        "shared: from 0:00 to 1:30, 80 s of tests, 3 s of CPU",
        "alone: from 0:30 to 2:30, 120 s of tests, 7 s of CPU",
        "   120 s,    7 s of CPU: e2e/test_a.py",
        "    80 s,    3 s of CPU: e2e/test_b.py; add it to LONG_FILES in tests/parallel.py",
    ]


def test_a_test_is_measured_though_it_fails() -> None:
    times = RunTimes()
    with pytest.raises(ValueError, match="it fails"), times.measuring("g", "f"):
        raise ValueError("it fails")
    assert [list(known) for known in times.dump()] == [["g"], ["f"]]


def test_a_file_has_no_time_of_the_others_in_its_group() -> None:
    times = RunTimes()
    for file in ("first", "second"):
        with times.measuring("g", file):
            time.sleep(0.02)
    (groups, files) = times.dump()
    assert groups["g"][2] == pytest.approx(files["first"][2] + files["second"][2])
