"""Worker pods are replaced, and killed, while they work.

A rolling update costs no attempt, and not one repeated run. A kill costs what ran just then: it
runs again, and the summary shows how often.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.naps import (
    assert_no_attempt_failed,
    repeated,
    steady_load,
    submit,
    wait_all_have_worked,
    wait_finished,
)
from tests.chaos.run_counter import RunCounter
from tests.conftest import RabbitMQ
from tests.e2e.api import Body
from tests.e2e.harness import TEMPLATE, Harness
from tests.integration.worker.process import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

WORKERS, SLOTS = 2, 4

#: Runs a worker whose connections have AMQP heartbeats of one second.
_HASTY = """
from taskqueue.amqp.connection import connect
connect.__kwdefaults__["heartbeat_seconds"] = 1
from taskqueue.__main__ import main
main()
"""
#: A handler that lets no other thread of its process have a turn while it runs.
_SELFISH = """
import ctypes
from taskqueue import task

@task
def hog(payload):
    ctypes.PyDLL(None).sleep(payload["seconds"])
"""


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    template = copy.deepcopy(TEMPLATE)
    # Longer than any Task here runs.
    template["spec"]["terminationGracePeriodSeconds"] = 15
    harness.queue(
        dispatch={"maxPublished": 64},
        scaling={"minReplicas": WORKERS, "maxReplicas": WORKERS},
        taskDefaults={"maxDeliveries": 10},
        workers={"concurrency": SLOTS, "template": template},
    )
    harness.queue("hasty", workers=None)
    harness.processes.prepare()
    harness.available(WORKERS)
    harness.ready("hasty")


@pytest.fixture
def run_counter(harness: Harness) -> Iterator[RunCounter]:
    run_counter = RunCounter(harness)
    run_counter.wait_followed(WORKERS)
    yield run_counter
    run_counter.close()


@dataclass
class Hasty:
    """A worker with its log in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def logged(self, event: str) -> int:
        """Return how often an event was logged."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return sum(line["event"] == event for line in lines)


@pytest.fixture(scope="module")
def hasty(
    harness: Harness, rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hasty]:
    folder = tmp_path_factory.mktemp("hasty")
    (folder / "selfish.py").write_text(_SELFISH)
    environment = {
        "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{folder}",
        "TASKQUEUE_NAMESPACE": harness.namespace,
        "TASKQUEUE_QUEUE": "hasty",
        "TASKQUEUE_BROKER_HOST": rabbitmq.host,
        "TASKQUEUE_BROKER_PORT": str(rabbitmq.port),
        "TASKQUEUE_BROKER_USERNAME": rabbitmq.username,
        "TASKQUEUE_BROKER_PASSWORD": rabbitmq.password,
        "TASKQUEUE_CONCURRENCY": "1",
        "TASKQUEUE_HEALTH_PORT": "0",
        "TASKQUEUE_LOG_FORMAT": "json",
        "POD_NAME": f"hasty-{harness.namespace}",
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _HASTY, "worker", "selfish"],
            stderr=output,
            env={**os.environ, **environment},
        )
    hasty = Hasty(process, log)
    yield hasty
    process.kill()
    process.wait()


def connections(harness: Harness) -> list[Body]:
    """Return the connections of the hasty worker that the broker tells of; it does so late."""
    found: list[Body] = harness.broker_api(
        "GET", "connections?columns=name,timeout,user_provided_name"
    )
    pod = f"hasty-{harness.namespace}"
    return [one for one in found if pod in one.get("user_provided_name", "")]


def test_a_rolling_update_under_load(
    harness: Harness, run_counter: RunCounter, summary_lines: list[str]
) -> None:
    with steady_load(harness, "rolled", 3 * WORKERS * SLOTS, longest=3) as names:
        for version in ("1", "2"):
            wait_all_have_worked(harness, names)
            harness.change_queue(
                workers={"template": {"metadata": {"annotations": {"version": version}}}}
            )
            rolled_out = [version] * WORKERS
            harness.until(lambda: versions(harness) == rolled_out, what=f"at version {version}")  # noqa: B023
        wait_all_have_worked(harness, names)
    statuses = assert_no_attempt_failed(harness, names)
    workers = {status["worker"] for status in statuses}
    assert len(workers) >= 3 * WORKERS, "not all of the three generations have worked"
    harness.all_counted(len(names))
    repeats = repeated(harness, run_counter, names)
    summary_lines.append(f"{len(names)} Tasks over {len(workers)} pods, {repeats} runs repeated")
    assert repeats == 0, "each had the time to end where it began"


def versions(harness: Harness) -> list[Any]:
    """Return the versions of the template that the workers have, of those there are."""
    return [pod["metadata"].get("annotations", {}).get("version") for pod in harness.pods()]


def test_killed_workers_and_pods(
    harness: Harness, run_counter: RunCounter, summary_lines: list[str]
) -> None:
    names = submit(harness, "killed", 110, longest=1.5)
    killed = 0
    for number, kill in enumerate((kill_worker, kill_pod, kill_all), start=1):
        wait_finished(harness, names, 20 * number)
        run_counter.wait_followed()
        killed += kill(harness)
    assert_no_attempt_failed(harness, names)
    repeats = repeated(harness, run_counter, names)
    summary_lines.append(
        f"{repeats} of {len(names)} Tasks ran once more, after {killed} workers were killed"
    )
    assert 0 < repeats <= killed * SLOTS


def kill_worker(harness: Harness) -> int:
    """Kill the processes of one pod, and leave the pod."""
    harness.kill_processes(running(harness)[0])
    return 1


def kill_pod(harness: Harness) -> int:
    """Kill a pod with all there is of it."""
    harness.kill(running(harness)[-1])
    return 1


def kill_all(harness: Harness) -> int:
    """Kill the processes of every worker there is."""
    pods = running(harness)
    for pod in pods:
        harness.kill_processes(pod)
    return len(pods)


def running(harness: Harness) -> list[str]:
    """Return the names of the pods in which a worker runs."""
    return [
        pod["metadata"]["name"]
        for pod in harness.pods()
        for container in pod["status"].get("containerStatuses", ())
        if "running" in container["state"]
    ]


# The broker closes a connection of which it has heard nothing for some three seconds.
@pytest.mark.parametrize(
    "seconds", [15, pytest.param(180, marks=[pytest.mark.long, pytest.mark.timeout(400)])]
)
def test_a_native_call_that_holds_the_interpreter_keeps_a_connection_of_one_second_heartbeats(
    harness: Harness, hasty: Hasty, summary_lines: list[str], seconds: int
) -> None:
    name = harness.task(f"hog-{seconds}", "hog", queue="hasty", payload={"seconds": seconds})
    harness.until(lambda: len(connections(harness)) == 2, what="two connections")
    status = harness.finished(name, seconds=seconds + 60)
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
    assert {one["timeout"] for one in connections(harness)} == {1}
    assert hasty.logged("consumer.registered") == 1
    assert hasty.logged("consumer.lost") == 0
    assert hasty.logged("publisher.lost") == 0
    summary_lines.append(f"{seconds} s within one native call that holds the interpreter")
