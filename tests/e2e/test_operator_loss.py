"""The operator is killed, or replaced, while Tasks wait, run and are between two attempts."""

import pytest

from tests.e2e.harness import OPERATOR_NAMESPACE, Lab

pytestmark = pytest.mark.cluster

WAITING, RUNNING, RETRYING = 30, 2, 6


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab) -> None:
    # A narrow window, so that most Tasks wait in the operator and not at the broker.
    lab.queue(dispatch={"maxPublished": 8}, scaling={"minReplicas": 1, "maxReplicas": 1})
    lab.available(1)


def load(lab: Lab, prefix: str) -> list[str]:
    """Have Tasks in every state of their life, and return their names."""
    retry = {"backoff": {"initialSeconds": 7}}
    names = lab.batch(f"{prefix}-flaky", RETRYING, "flaky", payload={"failures": 1}, retry=retry)
    lab.phase(names[-1], "Retrying")
    running = lab.batch(f"{prefix}-running", RUNNING, "nap", payload={"seconds": 5})
    names += running
    names += lab.batch(f"{prefix}-waiting", WAITING, "nap", payload={"seconds": 0.4})
    for name in running:
        lab.phase(name, "Running")
    return names


def assert_nothing_was_lost(lab: Lab, names: list[str]) -> None:
    statuses = dict(zip(names, lab.all_finished(names, seconds=120), strict=True))
    assert {status["phase"] for status in statuses.values()} == {"Succeeded"}
    for name, status in statuses.items():
        attempts = 2 if "flaky" in name else 1
        assert (status["attempts"], len(status["history"])) == (attempts, attempts), name


def test_the_operator_is_killed(lab: Lab) -> None:
    names = load(lab, "killed")
    former = [pod["metadata"]["name"] for pod in lab.operator_pods()]
    for pod in former:
        lab.kill(pod, namespace=OPERATOR_NAMESPACE)
    assert_nothing_was_lost(lab, names)
    assert not {pod["metadata"]["name"] for pod in lab.operator_pods()} & set(former)
    lab.all_counted(len(names), uncounted=len(names))  # nobody counted what ended just before


def test_the_operator_is_rolled(lab: Lab) -> None:
    counted = lab.queue_status(lambda status: True, what="a status")["totals"]["succeeded"]
    names = load(lab, "rolled")
    deployment = ("-n", OPERATOR_NAMESPACE, "deployment/taskqueue-operator")
    lab.kubectl.ok("rollout", "restart", *deployment)
    assert_nothing_was_lost(lab, names)
    lab.kubectl.ok("rollout", "status", *deployment, "--timeout=60s")
    total = counted + len(names)
    lab.queue_status(lambda it: it["totals"]["succeeded"] >= total, what=f"a total of {total}")
