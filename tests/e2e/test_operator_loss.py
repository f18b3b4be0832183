"""The operator is killed, or replaced, while Tasks wait, run and are between two attempts."""

import pytest

from tests.e2e.harness import OPERATOR_NAMESPACE, Harness, Run

pytestmark = pytest.mark.cluster

WAITING, RUNNING, RETRYING = 30, 2, 6


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    # A narrow window, so that most Tasks wait in the operator and not at the broker.
    harness.queue(dispatch={"maxPublished": 8}, scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)


def load(harness: Harness, prefix: str) -> list[str]:
    """Have Tasks in every state of their life, and return their names."""
    retry = {"backoff": {"initialSeconds": 7}}
    names = harness.batch(
        f"{prefix}-flaky", RETRYING, "flaky", payload={"failures": 1}, retry=retry
    )
    harness.phase(names[-1], "Retrying")
    running = harness.batch(f"{prefix}-running", RUNNING, "nap", payload={"seconds": 5})
    names += running
    names += harness.batch(f"{prefix}-waiting", WAITING, "nap", payload={"seconds": 0.4})
    for name in running:
        harness.phase(name, "Running")
    return names


def assert_nothing_was_lost(harness: Harness, names: list[str]) -> None:
    statuses = dict(zip(names, harness.all_finished(names, seconds=120), strict=True))
    assert {status["phase"] for status in statuses.values()} == {"Succeeded"}
    for name, status in statuses.items():
        attempts = 2 if "flaky" in name else 1
        assert (status["attempts"], len(status["history"])) == (attempts, attempts), name


def test_all_operators_are_killed(harness: Harness) -> None:
    names = load(harness, "killed")
    former = [pod["metadata"]["name"] for pod in harness.operator_pods()]
    for pod in former:
        harness.kill(pod, namespace=OPERATOR_NAMESPACE)
    assert_nothing_was_lost(harness, names)
    assert not {pod["metadata"]["name"] for pod in harness.operator_pods()} & set(former)
    harness.all_counted(len(names), uncounted=len(names))  # nobody counted what ended just before


def test_the_operator_is_rolled(harness: Harness) -> None:
    counted = harness.queue_status(lambda status: True, what="a status")["totals"]["succeeded"]
    names = load(harness, "rolled")
    deployment = ("-n", OPERATOR_NAMESPACE, "deployment/taskqueue-operator")
    harness.kubectl.ok("rollout", "restart", *deployment)
    assert_nothing_was_lost(harness, names)
    harness.kubectl.ok("rollout", "status", *deployment, "--timeout=60s")
    total = counted + len(names)
    harness.queue_status(lambda it: it["totals"]["succeeded"] >= total, what=f"a total of {total}")


def test_the_next_operator_stops_and_deletes_what_the_former_would_have(harness: Harness) -> None:
    harness.finished(harness.task("left", ttlSecondsAfterFinished=5))
    harness.finished(harness.task("left-for-long", ttlSecondsAfterFinished=3600))
    harness.task("forsaken", "watch", payload={"seconds": 600})
    harness.phase("forsaken", "Running")
    uid = harness.tasks.versions("forsaken")[-1]["metadata"]["uid"]
    harness.kill_operator()
    harness.delete_task("forsaken")
    harness.tasks.wait_deleted("forsaken")

    def runs() -> list[Run]:
        return [run for run in harness.runs() if run.uid == uid]

    harness.until(lambda: bool(runs()) and runs()[-1].ended is not None, what="stopped", seconds=90)
    (run,) = runs()
    assert run.ended is not None
    assert (run.ended - run.began).total_seconds() < 600
    harness.tasks.wait_deleted("left", seconds=90)
    kept = {one["metadata"]["name"] for one in harness.api.get(harness.path("tasks"))["items"]}
    assert "left-for-long" in kept
    assert "left" not in kept
