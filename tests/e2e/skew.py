"""What the tests of skew share: the older images, and Tasks that end in each of the usual ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_kind import KindCluster

from devcluster import images
from devcluster.cluster import load_images
from devcluster.paths import CHECKOUT
from tests.commits import OLDER
from tests.conformance import go
from tests.e2e import gates, go_worker
from tests.e2e.api import Body
from tests.e2e.harness import Harness, merged

TODAYS, OLDER_IMAGE = images.OPERATOR, f"taskqueue-operator:{OLDER}"
OLDER_GO_IMAGE = f"taskqueue-go-worker:{OLDER}"

#: All workers of a pool, and the attempts that they run at once.
SLOTS = 4


def put_older_image(request: pytest.FixtureRequest, tree: Path) -> None:
    """Build the image of the older sources, and put it into the cluster."""
    images.build_operator(OLDER_IMAGE, tree)
    load_images(own_cluster(request), [OLDER_IMAGE])


def put_older_go_image(request: pytest.FixtureRequest, tree: Path, folder: Path) -> None:
    """Build the image of the older Go worker, and put it into the cluster."""
    module = tree / go.MODULE.relative_to(CHECKOUT)
    go_worker.put_image(own_cluster(request), folder, image=OLDER_GO_IMAGE, module=module)


def own_cluster(request: pytest.FixtureRequest) -> KindCluster:
    """Return the cluster if images may be put into it; else skip the test."""
    if request.config.getoption("cluster") != "own":
        pytest.skip("it puts images into the cluster, which is not ours")
    cluster: KindCluster = request.getfixturevalue("kind_cluster")
    return cluster


def python_template(image: str) -> Body:
    """Return a pod template; today's workers know one handler more: ``newcomer``."""
    newer = ["rolled_out"] if image == TODAYS else []
    return gates.template(image=image, args=["worker", "handlers", "gated", *newer])


def go_template(image: str) -> Body:
    """Return the pod template of the Go example with this image, and little time to end."""
    template: Body = go_worker.manifest("taskqueue.yaml")["spec"]["workers"]["template"]
    (container,) = template["spec"]["containers"]
    spec = {"terminationGracePeriodSeconds": 6, "containers": [{**container, "image": image}]}
    return merged(template, {"spec": spec})


def create_queue(harness: Harness, name: str, template: Body) -> None:
    """Create a TaskQueue with one worker."""
    harness.queue(
        name,
        scaling={"minReplicas": 1, "maxReplicas": 1},
        workers={"concurrency": SLOTS, "template": template},
    )


def roll(harness: Harness, queue: str, template: Body) -> None:
    """Have the worker of a pool replaced, if it is another; return when that has gone."""
    before = the_worker(harness, queue)
    image = template["spec"]["containers"][0]["image"]
    if before["spec"]["containers"][0]["image"] == image:
        return
    harness.change_queue(queue, workers={"template": template})
    name = before["metadata"]["name"]

    def has_gone() -> bool:
        return name not in [pod["metadata"]["name"] for pod in harness.all_pods(queue)]

    harness.until(has_gone, what=f"{name} gone")
    the_worker(harness, queue)


def the_worker(harness: Harness, queue: str = "q") -> Body:
    """Return the pod of the one worker of a pool, once it is available."""
    harness.available(1, queue)
    harness.until(lambda: len(harness.pods(queue)) == 1, what="one worker")
    (pod,) = harness.pods(queue)
    return pod


@dataclass(frozen=True)
class End:
    """A Task, and how it has to end: a phase and what else its status says."""

    handler: str
    phase: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    history: tuple[str, ...] = ()
    attempts: int = 1


def retry(attempts: int, *non_retryable: str) -> dict[str, Any]:
    """Return the spec of a policy."""
    return {"retry": {"maxAttempts": attempts, "nonRetryable": list(non_retryable)}}


#: How attempts of the handlers of tests/e2e end, by the name of the Task.
PYTHON_ENDS = {
    "success": End("echo", "Succeeded", {"payload": {"page": 7}}, history=("",)),
    "retried": End(
        "flaky",
        "Succeeded",
        {"payload": {"failures": 2}},
        history=("ConnectionError", "ConnectionError", ""),
        attempts=3,
    ),
    "retried-later": End(
        "rate_limited", "Succeeded", {"payload": {"after": 0.5}}, history=("Retry", ""), attempts=2
    ),
    "exhausted": End(
        "flaky",
        "Failed",
        {"payload": {"failures": 9}, **retry(2)},
        reason="RetriesExhausted",
        history=("ConnectionError", "ConnectionError"),
        attempts=2,
    ),
    "for-good": End("give_up", "Failed", retry(3), reason="NonRetryable", history=("NotFound",)),
    "named": End(
        "flaky",
        "Failed",
        {"payload": {"failures": 9}, **retry(3, "ConnectionError")},
        reason="NonRetryable",
        history=("ConnectionError",),
    ),
    "timeout": End(
        "watch",
        "Failed",
        {"payload": {"seconds": 60}, "attemptTimeoutSeconds": 1, **retry(3, "Timeout")},
        reason="NonRetryable",
        history=("Timeout",),
    ),
    "too-large": End(
        "sized",
        "Failed",
        {"payload": {"bytes": 20_000}, **retry(3)},
        reason="NonRetryable",
        history=("ResultTooLarge",),
    ),
    "stepwise": End(
        "echo", "Succeeded", {"concurrencyKey": "one", "payload": {"a": 1}}, history=("",)
    ),
}

#: The same of the Go worker's handlers.
GO_ENDS = {
    "go-success": End("checksum", "Succeeded", {"payload": {"text": "hello"}}, history=("",)),
    "go-for-good": End(
        "checksum",
        "Failed",
        {"payload": {"words": "hello"}, **retry(3)},
        reason="NonRetryable",
        history=("InvalidPayload",),
    ),
    "go-timeout": End(
        "nap",
        "Failed",
        {"payload": {"seconds": 60}, "attemptTimeoutSeconds": 1, **retry(3, "Timeout")},
        reason="NonRetryable",
        history=("Timeout",),
    ),
    "go-exhausted": End(
        "nap",
        "Failed",
        {"payload": {"seconds": 60}, "attemptTimeoutSeconds": 1, **retry(2)},
        reason="RetriesExhausted",
        history=("Timeout", "Timeout"),
        attempts=2,
    ),
}


def assert_ends(harness: Harness, ends: Mapping[str, End], *, queue: str, prefix: str = "") -> None:
    """Create the Tasks, and check how each of them ends."""
    for name, end in ends.items():
        harness.task(prefix + name, end.handler, queue=queue, **end.spec)
    for name, end in ends.items():
        status = harness.finished(prefix + name)
        history = tuple(each.get("reason", "") for each in status.get("history", []))
        seen = (status["phase"], status.get("reason", ""), history, status["attempts"])
        assert seen == (end.phase, end.reason, end.history, end.attempts), f"{name}: {status}"


def wait_running(harness: Harness, names: Collection[str], count: int) -> None:
    """Wait until so many of these Tasks run."""

    def running() -> int:
        last = [harness.tasks.versions(name)[-1:] for name in names]
        return sum(one["status"]["phase"] == "Running" for versions in last for one in versions)

    harness.until(lambda: running() == count, what=f"{count} Tasks running")


def assert_obeys(harness: Harness, name: str, handler: str, *, queue: str) -> None:
    """Suspend a Task that runs, resume it and cancel it: its worker gives it back, and stops it."""

    def say(**spec: bool) -> None:
        harness.api.patch(harness.path("tasks", name), {"spec": spec})

    def wait_logged(event: str) -> None:
        """Wait for the worker's own word: the operator waits for none before it says so."""

        def is_logged() -> bool:
            lines = harness.worker_log(queue).splitlines()
            return any(event in line and uid in line for line in lines)

        harness.until(is_logged, what=f"{event} logged")

    harness.task(name, handler, queue=queue, payload={"seconds": 600})
    harness.phase(name, "Running")
    uid = harness.tasks.versions(name)[-1]["metadata"]["uid"]
    say(suspend=True)
    harness.phase(name, "Suspended")
    wait_logged("task.released")
    say(suspend=False)
    harness.phase(name, "Running")
    say(cancel=True)
    status = harness.finished(name)
    assert (status["phase"], status["attempts"]) == ("Cancelled", 1)
    wait_logged("task.cancelled")


def assert_is_blocked(harness: Harness, name: str, handler: str, *, queue: str) -> None:
    """Create a Task that no worker has code for: it waits for one."""
    harness.task(name, handler, queue=queue)
    assert harness.phase(name, "Blocked")["reason"] == "UnknownHandler"
