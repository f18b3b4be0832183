"""The guards of a Task's status and of its end: every kind of late write is refused."""

from __future__ import annotations

import pytest

from taskqueue.api.task_status import TERMINAL_PHASES
from tests.integration.admission import (
    FINISHED,
    QUEUES,
    STARTED,
    SUCCEEDED,
    TASKS,
    Api,
    Body,
    assert_refused,
    queue,
    task,
)

pytestmark = pytest.mark.cluster


REFERENCE = {
    "key": "shop/q/u/1-0",
    "sizeBytes": 7,
    "contentType": "image/png",
    "sha256": "0123abcd" * 8,
    "expirationTime": FINISHED,
}
RUNNING = {"phase": "Running", "attempts": 2, "epoch": 1, "startTime": STARTED}


@pytest.mark.parametrize(
    ("before", "status", "says"),
    [
        (SUCCEEDED, {"phase": "Running"}, "the phase of a finished Task never changes"),
        (SUCCEEDED, {"phase": "Failed"}, "the phase of a finished Task never changes"),
        (SUCCEEDED, {"phase": None}, "the phase of a finished Task never changes"),
        (SUCCEEDED, None, "the phase of a finished Task never changes"),
        (SUCCEEDED | {"phase": "Failed"}, {"phase": "Succeeded"}, "phase of a finished Task"),
        (SUCCEEDED | {"phase": "Cancelled"}, {"phase": "Succeeded"}, "phase of a finished Task"),
        ({"phase": "Cancelled"}, None, "the phase of a finished Task never changes"),
        (SUCCEEDED, {"completionTime": None}, "completionTime is never cleared"),
        (RUNNING, {"epoch": 0}, "epoch never decreases"),
        (RUNNING, {"epoch": None}, "epoch never decreases"),
        (RUNNING, {"attempts": 1}, "attempts never decrease"),
        (RUNNING, {"attempts": None}, "attempts never decrease"),
        (RUNNING, None, "attempts never decrease"),
        (RUNNING, {"phase": "Done"}, 'Unsupported value: "Done"'),
        (RUNNING, {"message": "m" * 4097}, "Too long"),
        (RUNNING, {"history": [{"attempt": 1, "outcome": "Failed"}] * 11}, "at most 10 items"),
        (RUNNING, {"history": [{"attempt": 1, "outcome": "Odd"}]}, 'Unsupported value: "Odd"'),
        (RUNNING, {"result": [1]}, "must be of type object"),
        (RUNNING, {"resultRef": REFERENCE}, "only a Task that succeeded has a resultRef"),
        (RUNNING, {"phase": "Failed", "resultRef": REFERENCE}, "only a Task that succeeded has"),
        (RUNNING, {"phase": "Cancelled", "resultRef": REFERENCE}, "only a Task that succeeded"),
        (RUNNING, {"phase": "Succeeded", "resultRef": {"key": "k"}}, "Required value"),
        (
            RUNNING,
            {"phase": "Succeeded", "resultRef": REFERENCE | {"sha256": "0" * 63}},
            "should match",
        ),
        (RUNNING, {"completionTime": "yesterday"}, "must be of type date-time"),
        (RUNNING, {"concurrencyKey": "k" * 254}, "Too long"),
        (RUNNING, {"progress": 40}, "must be of type object"),
        (RUNNING, {"progress": {"percent": 101}}, "should be less than or equal to 100"),
        (RUNNING, {"progress": {"percent": -1}}, "should be greater than or equal to 0"),
        (RUNNING, {"progress": {"percent": 0.5}}, "must be of type integer"),
        (RUNNING, {"progress": {"message": "m" * 1025}}, "Too long"),
    ],
)
def test_refused_status(api: Api, before: Body, status: Body | None, says: str) -> None:
    api.create(task())
    done = api.patch_status(f"{TASKS}/t", before)
    assert done.returncode == 0, done.stderr
    assert_refused(api.patch_status(f"{TASKS}/t", status), says)


@pytest.mark.parametrize("phase", TERMINAL_PHASES)
def test_late_write_of_a_finished_status_is_refused(api: Api, phase: str) -> None:
    """By merge patch, JSON patch, whole object and server-side apply."""
    api.create(task())
    uid = api.get(f"{TASKS}/t")["metadata"]["uid"]
    end = SUCCEEDED | {"phase": phase, "observedGeneration": 1}
    done = api.patch_status(f"{TASKS}/t", end)
    assert done.returncode == 0, done.stderr
    body = api.get(f"{TASKS}/t")
    without = {key: value for key, value in body.items() if key != "status"}
    late = {"phase": "Running", "attempts": 1, "completionTime": FINISHED}

    merges: list[Body] = [
        {"status": None},
        {"status": {"phase": None}},
        {"status": {"phase": "Running"}},
        {"status": {"phase": "Suspended", "epoch": 1}},
    ]
    same = {"op": "test", "path": "/metadata/uid", "value": uid}
    patches: list[list[Body]] = [
        [same, {"op": "add", "path": "/status", "value": late}],  # as the operator writes
        [same, {"op": "add", "path": "/status", "value": {}}],
        [{"op": "replace", "path": "/status", "value": None}],
        [{"op": "replace", "path": "/status/phase", "value": "Retrying"}],
        [{"op": "remove", "path": "/status/phase"}],
        [{"op": "remove", "path": "/status"}],
    ]
    wholes: list[Body] = [without, *({**without, "status": s} for s in (None, {}, late))]
    apply = ("apply", "--server-side", "--force-conflicts", "--field-manager=late", "-f", "-")
    where = "--subresource=status"
    tries = [api.patch(f"{TASKS}/t", merge, subresource="status") for merge in merges]
    tries += [api.json_patch(f"{TASKS}/t", patch, subresource="status") for patch in patches]
    tries += [api.run("replace", where, "-f", "-", body=whole) for whole in wholes]
    tries += [api.run(*apply, where, body=task() | {"status": {"phase": "Running"}})]
    for done in tries:
        assert_refused(done, "the phase of a finished Task never changes: create a new Task")
    assert api.get(f"{TASKS}/t")["status"] == end


def test_normal_sequence_of_statuses_is_accepted(api: Api) -> None:
    api.create(task())
    condition = {"status": "True", "reason": "Done", "lastTransitionTime": FINISHED}
    attempt = {"attempt": 1, "outcome": "Failed", "finishTime": STARTED, "reason": "ValueError"}
    steps: list[Body] = [
        {"phase": "Running", "attempts": 1, "startTime": STARTED, "worker": "w-1"},
        {"phase": "Retrying", "nextAttemptTime": "2026-01-02T03:04:06.500000Z"},
        {"phase": "Pending", "history": [attempt], "epoch": 1},
        SUCCEEDED
        | {"attempts": 2, "nextAttemptTime": None, "result": {"any": [{"thing": 1}]}}
        | {"resultRef": REFERENCE},
        {"conditions": [{"type": "Finished", **condition}, {"type": "Complete", **condition}]},
    ]
    for status in steps:
        done = api.patch_status(f"{TASKS}/t", status)
        assert done.returncode == 0, done.stderr
    assert api.get(f"{TASKS}/t")["status"]["result"] == {"any": [{"thing": 1}]}


def test_kubectl_wait_needs_a_condition_of_the_newest_generation(api: Api) -> None:
    api.create(task())
    complete = {"type": "Complete", "status": "True", "reason": "Done"}
    status = SUCCEEDED | {"conditions": [complete | {"lastTransitionTime": FINISHED}]}
    wait = ("wait", f"{TASKS}/t", "--for=condition=Complete")
    api.patch_status(f"{TASKS}/t", status)
    assert_refused(api.run(*wait, "--timeout=1s"), "timed out")  # observedGeneration is still -1
    api.patch_status(f"{TASKS}/t", {"observedGeneration": 1})
    done = api.run(*wait, "--timeout=10s")
    assert done.returncode == 0, done.stderr


def test_nulls_in_payload_and_result_are_kept(api: Api) -> None:
    free = {"none": None, "deep": [None, {"none": None}]}
    body = api.create(task(payload=free))
    assert body["spec"]["payload"] == free
    body["status"] |= {"result": free}
    body = api.json("replace", "--subresource=status", "-f", "-", body=body)
    assert body["status"]["result"] == free


PAYLOAD = {"payload": {"a": {"b": [1, {"c": 2}]}, "d": 1}}


@pytest.mark.parametrize("phase", TERMINAL_PHASES)
def test_the_spec_of_a_finished_task_is_frozen_and_nothing_else(api: Api, phase: str) -> None:
    manifest = task(**PAYLOAD)
    assert api.run("apply", "-f", "-", body=manifest).returncode == 0
    api.patch_status(f"{TASKS}/t", SUCCEEDED | {"phase": phase})
    changes: list[Body] = [
        {"priority": 1},
        {"retry": {"maxAttempts": 5}},
        {"maxDeliveries": 2},
        {"cancel": True},
        {"suspend": True},
        {"dependsOn": ["a"]},
        {"startAfter": "2026-01-02T03:04:05Z"},
        {"concurrencyKey": "k"},
        {"activeDeadlineSeconds": 1},
        {"ttlSecondsAfterFinished": 1},
    ]
    for change in changes:
        refused = api.patch(f"{TASKS}/t", {"spec": change})
        assert_refused(refused, "the spec of a finished Task is frozen: create a new Task")
    done = api.patch(f"{TASKS}/t", {"metadata": {"labels": {"kept": "yes"}}})
    assert done.returncode == 0, done.stderr
    again = api.run("apply", "-f", "-", body=manifest)
    assert again.returncode == 0, again.stderr
    assert "unchanged" in again.stdout
    assert api.get(f"{TASKS}/t")["status"]["phase"] == phase


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"deadLetters": -1}, "should be greater than or equal to 0"),
        ({"deadLetters": 0.5}, "must be of type integer"),
        ({"throughputPerMinute": -0.1}, "should be greater than or equal to 0"),
        ({"meanRunSeconds": -0.1}, "should be greater than or equal to 0"),
        ({"meanRunSeconds": "1s"}, "must be of type number"),
    ],
)
def test_refused_status_of_a_queue(api: Api, status: Body, says: str) -> None:
    api.create(queue())
    assert_refused(api.patch_status(f"{QUEUES}/thumbnails", status), says)
    measured = {"deadLetters": 0, "throughputPerMinute": 0.5, "meanRunSeconds": 0}
    done = api.patch_status(f"{QUEUES}/thumbnails", measured)
    assert done.returncode == 0, done.stderr
