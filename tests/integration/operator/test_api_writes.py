"""What a short Task costs the API server: one write, however one counts."""

import re

import pytest

from tests.e2e.api import TASKQUEUE_API, Api
from tests.e2e.harness import Harness
from tests.e2e.observations import Observations

pytestmark = pytest.mark.cluster

TASKS = 50
WRITES = ("APPLY", "PATCH", "PUT")
COUNTER = re.compile(r"apiserver_request_total\{(?P<labels>.*)\} (?P<value>\S+)")


def writes_to_tasks(api: Api) -> int:
    """Return how many writes to Tasks, other than their creation, were ever asked for."""
    total = 0.0
    for line in api.text("/metrics").splitlines():
        found = COUNTER.fullmatch(line)
        if found is None:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
        ours = (labels["group"], labels["resource"]) == ("taskqueue.dev", "tasks")
        if ours and labels["verb"] in WRITES:
            total += float(found["value"])
    return round(total)


def test_a_short_task_is_written_once(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)
    harness.task("warm")
    harness.finished("warm")
    everywhere = Observations(harness.api, f"{TASKQUEUE_API}/tasks")
    try:
        before = writes_to_tasks(harness.api)
        names = harness.batch("short", TASKS)
        harness.all_finished(names)
        asked = writes_to_tasks(harness.api) - before
        elsewhere = [
            version
            for version in everywhere.all_versions()
            if version["metadata"]["namespace"] != harness.namespace
        ]
    finally:
        everywhere.close()

    # As the watch tells: created, and written once.
    assert [len(harness.tasks.versions(name)) for name in names] == [2] * TASKS
    for name in names:
        created, done = harness.tasks.versions(name)
        assert created["status"] == {"phase": "Pending", "observedGeneration": -1}
        assert done["status"]["phase"] == "Succeeded"
        entries = done["metadata"]["managedFields"]
        assert [one.get("subresource") for one in entries].count("status") == 1
        assert done["metadata"].keys() == created["metadata"].keys()  # no finalizer, no annotation
    # As the API server counts, which counts all namespaces together.
    if elsewhere:
        pytest.skip("Tasks of another namespace were written meanwhile: its counter tells nothing")
    assert asked == TASKS
