"""Go workers and Python workers on one TaskQueue, and Go workers as a TaskQueue's own pool."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conformance import go
from tests.e2e import go_worker
from tests.e2e.events import events_of
from tests.e2e.harness import Harness

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(go.go() is None, reason="Go is not installed"),
]

#: Tasks that both kinds share, and how long each takes: long enough to be killed in the middle.
COUNT, SECONDS = 200, 0.3


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go programs; their image is in the cluster, unless it is somebody else's."""
    folder = tmp_path_factory.mktemp("go")
    if request.config.getoption("cluster") == "own":
        go_worker.put_image(request.getfixturevalue("kind_cluster"), folder)
    else:
        go.build("producer", folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness, programs: Path) -> None:
    go_worker.uri_secret(harness)
    harness.queue("mixed", scaling={"minReplicas": 1, "maxReplicas": 1})
    go_worker.deploy_beside(harness, "mixed")
    harness.api.request("POST", harness.path("taskqueues"), go_worker.manifest("taskqueue.yaml"))


def both_ready(harness: Harness) -> tuple[set[str], set[str]]:
    """Return the pods of both kinds, one of each, once they are ready."""
    harness.available(1, "mixed")
    harness.until(
        lambda: len(go_worker.ready_pods(harness, "mixed")) == 1, what="a Go worker ready"
    )
    python = {pod["metadata"]["name"] for pod in harness.pods("mixed")}
    return python, set(go_worker.ready_pods(harness, "mixed"))


def finished(harness: Harness, names: list[str]) -> int:
    return sum(
        bool(versions) and versions[-1]["status"]["phase"] == "Succeeded"
        for versions in map(harness.tasks.versions, names)
    )


def test_both_kinds_are_listed(harness: Harness) -> None:
    python, golang = both_ready(harness)
    status = harness.queue_status(
        lambda status: {one["pod"] for one in status.get("workers", ())} == python | golang,
        "mixed",
        what="both kinds listed",
    )
    handlers = {one["pod"]: one["handlers"] for one in status["workers"]}
    assert handlers[golang.pop()] == ["checksum", "echo", "nap"]


@pytest.mark.parametrize("victims", ["go", "python"])
def test_both_kinds_share_the_work_and_take_it_from_the_killed(
    harness: Harness, victims: str
) -> None:
    python, golang = both_ready(harness)
    names = [f"{victims}-dies-{number}" for number in range(COUNT)]
    creation = threading.Thread(
        target=harness.batch,
        args=(f"{victims}-dies", COUNT, "nap"),
        kwargs={"queue": "mixed", "payload": {"seconds": SECONDS}},
    )
    creation.start()
    harness.until(lambda: finished(harness, names) >= COUNT // 2, what="half of the Tasks done")
    for pod in golang if victims == "go" else python:
        harness.kill(pod)
    creation.join()
    ended = harness.all_finished(names, seconds=90)
    assert {(one["phase"], one["attempts"]) for one in ended} == {("Succeeded", 1)}
    by_python = sum(one["worker"].startswith("mixed-worker-") for one in ended)
    by_go = sum(one["worker"].startswith("go-worker-mixed-") for one in ended)
    assert by_python + by_go == COUNT
    assert min(by_python, by_go) >= COUNT // 10, f"Python {by_python}, Go {by_go}"
    # The pod's own word: the worker that is told of is the one that ran it.
    assert all(one["result"]["pod"] == one["worker"] for one in ended)


def test_go_workers_are_a_pool_that_comes_from_zero(harness: Harness) -> None:
    harness.ready("go")
    harness.task("sum", "checksum", queue="go", payload={"text": "hello"})
    harness.task("bad", "checksum", queue="go", payload={"words": "hello"})
    harness.task("unknown", "no-such-handler", queue="go")
    status = harness.finished("sum", seconds=90)
    assert status["phase"] == "Succeeded"
    assert status["result"]["sha256"].startswith("2cf24dba5fb0a30e")
    assert status["worker"].startswith("go-worker-")
    failed = harness.finished("bad")
    assert (failed["phase"], failed["reason"], failed["attempts"]) == ("Failed", "NonRetryable", 1)
    assert "InvalidPayload" in failed["message"]
    assert harness.phase("unknown", "Blocked")["reason"] == "UnknownHandler"
    harness.delete_task("unknown")


def test_a_go_worker_obeys_a_cancel(harness: Harness) -> None:
    harness.task("long", "nap", queue="go", payload={"seconds": 600})
    harness.phase("long", "Running", seconds=90)
    harness.api.patch(harness.path("tasks", "long"), {"spec": {"cancel": True}})
    assert harness.finished("long")["phase"] == "Cancelled"
    pods = harness.pods("go")
    harness.until(
        lambda: (
            "task.cancelled"
            in harness.kubectl.ok("logs", "-n", harness.namespace, pods[0]["metadata"]["name"])
        ),
        what="the worker told to stop",
    )


def test_the_go_producer_sends_direct_messages(harness: Harness, programs: Path) -> None:
    rabbitmq = harness.rabbitmq
    uri = f"amqp://{rabbitmq.username}:{rabbitmq.password}@{rabbitmq.host}:{rabbitmq.port}/"
    with events_of(harness, "go") as events:

        def produce(queue: str, body: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [programs / "producer", f"-namespace={harness.namespace}", f"-queue={queue}", body],
                env={**os.environ, "TASKQUEUE_BROKER_URI": uri},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        sent = produce("go", '{"word": "hello"}')
        assert sent.returncode == 0, sent.stderr
        event = events.of(sent.stdout.strip())
        assert event["data"]["result"] == {"word": "hello"}
        lost = produce("nowhere", "{}")
        assert lost.returncode == 1
        assert "does the TaskQueue exist?" in lost.stderr
