"""What `taskqueue why` says follows from the objects alone."""

from typing import Any

import pytest

from taskqueue.cli.explain import explain
from taskqueue.cli.selection import PHASES

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
CREATED = "2027-01-15T07:00:00Z"


def task(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": "resize-1", "creationTimestamp": CREATED},
        "spec": {"queue": "thumbnails", "handler": "resize"},
        "status": status,
    }


def queue(**status: Any) -> dict[str, Any]:
    policy = status.pop("policy", "None")
    return {
        "metadata": {"namespace": "shop", "name": "thumbnails"},
        "spec": {"stopPolicy": policy},
        "status": status,
    }


@pytest.mark.parametrize(
    ("found", "of", "said"),
    [
        (
            task(phase="Blocked", reason="QueueNotFound", message="there is none"),
            None,
            ["is Blocked, QueueNotFound, there is none", "no TaskQueue shop/thumbnails: create it"],
        ),
        (
            task(phase="Pending"),
            queue(pending=3, ready=2, running=4, replicas=2, scaling="2 = maxReplicas"),
            ["3 wait in the operator, 2 for a worker, 4 run on 2 workers (2 = maxReplicas)"],
        ),
        (
            task(phase="Pending"),
            queue(policy="Hold"),
            ["queue is held (stopPolicy Hold): kubectl taskqueue resume thumbnails -n shop"],
        ),
        (
            task(phase="Pending"),
            queue(
                conditions=[
                    {"type": "WorkersAvailable", "status": "False", "message": "none is ready"},
                    {"type": "Ready", "status": "True", "message": "all is well"},
                ]
            ),
            ["condition WorkersAvailable is False: none is ready"],
        ),
        (
            task(phase="Pending"),
            queue(
                conditions=[
                    {"type": "DispatchLimited", "status": "True", "message": "the rate limit api"}
                ]
            ),
            ["condition DispatchLimited is True: the rate limit api"],
        ),
        (
            task(
                phase="Retrying",
                nextAttemptTime="2027-01-15T08:01:30Z",
                history=[
                    {"attempt": 1, "outcome": "Failed", "reason": "OSError", "worker": "pod-1"}
                ],
            ),
            queue(),
            ["It is due in 1m30s", "Attempt 1 failed on pod-1, OSError."],
        ),
        (
            task(phase="Running", worker="pod-1", attempts=2, startTime="2027-01-15T07:59:15Z"),
            queue(),
            ["runs on pod-1, attempt 2", "began 45s ago"],
        ),
        (task(phase="Suspended", reason="Suspended"), queue(), ["when spec.suspend is false"]),
        (
            task(phase="Failed", reason="RetriesExhausted", attempts=3),
            queue(),
            ["ended: Failed after 3 attempts", "kubectl taskqueue retry resize-1 -n shop"],
        ),
    ],
)
def test_it_says_what_holds_the_task_and_what_to_do(
    found: dict[str, Any], of: dict[str, Any] | None, said: list[str]
) -> None:
    text = "\n".join(explain(found, of, NOW))
    for part in said:
        assert part in text, text


def test_a_queue_that_is_well_is_not_complained_about() -> None:
    conditions = [{"type": "Ready", "status": "True", "message": "all is well"}]
    assert "condition" not in "\n".join(explain(task(), queue(conditions=conditions), NOW))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("of", [None, queue()], ids=["without a queue", "with its queue"])
def test_every_phase_has_a_first_sentence(phase: str, of: dict[str, Any] | None) -> None:
    first = explain(task(phase=phase), of, NOW)[0]
    assert "resize-1" in first
    assert first.endswith(".")
