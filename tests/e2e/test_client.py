"""A program that submits Tasks and waits for them, as docs/guides/clients.md has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from taskqueue.client import TaskCancelled, TaskClient
from tests.conftest import Cluster
from tests.e2e.guides import blocks
from tests.e2e.harness import HANDLERS, Harness

pytestmark = pytest.mark.cluster

#: For workers that have to be started first.
SECONDS = 90

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def queue(harness: Harness) -> str:
    """The guides' TaskQueue, whose workers know the overview's handlers and the tests'."""
    overview = "".join(block.text for block in blocks("README.md", "python"))
    modules = {"handlers.py": f"{overview}\nfrom of_tests import *\n"}
    modules["of_tests.py"] = HANDLERS.read_text()
    harness.api.patch(harness.core("configmaps", "handlers"), {"data": modules})
    # A worker that stays: these are tests of the client, not of cold starts.
    harness.queue("work", scaling={"minReplicas": 1})
    return "work"


@pytest.fixture(scope="module")
def kubeconfig(cluster: Cluster, harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cluster's kubeconfig, with the test namespace as its default."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for one in config["contexts"]:
        one["context"]["namespace"] = harness.namespace
    path = tmp_path_factory.mktemp("client") / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture
def tasks(kubeconfig: str) -> Iterator[TaskClient]:
    with TaskClient(kubeconfig=kubeconfig) as tasks:
        yield tasks


def test_a_program_submits_twenty_tasks_and_waits_for_all(tasks: TaskClient, queue: str) -> None:
    submitted = [tasks.submit(queue, "echo", {"n": n}, name=f"t{n}") for n in range(20)]
    results = tasks.wait_all(submitted, SECONDS)
    assert [result.result for result in results] == [{"n": n} for n in range(20)]
    assert {result.phase for result in results} == {"Succeeded"}
    again = tasks.submit(queue, "echo", {"n": 7}, name="t7")
    assert again.uid == submitted[7].uid
    assert again.wait(0.1 + SECONDS).result == {"n": 7}


def test_a_stream_shows_the_phases_and_the_worker(
    tasks: TaskClient, queue: str, harness: Harness
) -> None:
    task = tasks.submit(queue, "watch_async", {"seconds": 4})
    seen = list(task.stream())
    phases = [status.phase for status in seen]
    assert phases[0] in ("Pending", "Running")
    assert phases[-2:] == ["Running", "Succeeded"]
    assert seen[-1].result == {"pod": seen[-2].worker}


def test_a_running_task_is_cancelled(tasks: TaskClient, queue: str) -> None:
    task = tasks.submit(queue, "watch_async", {"seconds": 600})
    for status in task.stream():
        if status.phase == "Running":
            task.cancel()
    assert status.phase == "Cancelled"
    with pytest.raises(TaskCancelled):
        task.wait(SECONDS)


def test_a_task_may_be_submitted_before_its_queue(
    tasks: TaskClient, harness: Harness, queue: str
) -> None:
    task = tasks.submit("later", "echo", {"a": 1})
    for status in task.stream():
        if status.reason == "QueueNotFound":
            harness.queue("later")
    assert (status.phase, status.result) == ("Succeeded", {"a": 1})


@pytest.mark.parametrize(
    "place", [block.line for block in blocks("clients.md", "python") if block.word == "run"]
)
def test_programs_of_the_guide_run(place: int, queue: str, kubeconfig: str) -> None:
    (block,) = [one for one in blocks("clients.md", "python") if one.line == place]
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        env={**os.environ, "KUBECONFIG": kubeconfig, "PYTHONPATH": str(_ROOT / "operator")},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    expected = "Cancelled" if "stream()" in block.text else "Hello, Ada!"
    assert expected in done.stdout
