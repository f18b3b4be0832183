"""Faults of a worker in the cluster: its clock."""

from __future__ import annotations

import copy
import json
import time

import pytest

from tests.e2e.harness import TEMPLATE, Harness
from tests.faults.clock import PodClock, pod_addition

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

HANDLERS = ("in_child", "in_thread", "on_loop")

#: They read the clocks: in a child process, in a thread, on the worker's loop.
_MODULE = """
import time
from taskqueue import task

def clocks():
    return {"wall": time.time(), "monotonic": time.monotonic()}

@task
def in_child(payload):
    return clocks()

@task(thread=True)
def in_thread(payload):
    return clocks()

@task
async def on_loop(payload):
    return clocks()
"""


def test_handlers_see_the_stepped_clock_of_their_worker(harness: Harness) -> None:
    addition = pod_addition()
    namespace = harness.namespace
    manifest = json.dumps(addition.config_map)
    harness.kubectl.ok("create", "-n", namespace, "-f", "-", input=manifest)
    harness.create_core("configmaps", "clocks", data={"clocks.py": _MODULE})
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["args"] = ["worker", "clocks"]
    template["spec"]["volumes"] = [{"name": "handlers", "configMap": {"name": "clocks"}}]
    template["spec"] = addition.added_to(template["spec"])
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1}, workers={"template": template})
    harness.available(1)
    (pod,) = harness.pods()

    def offsets(run: str) -> dict[str, list[float]]:
        """Return how far the clocks of each handler are ahead of ours, in seconds."""
        result = {}
        for handler in HANDLERS:
            ours = time.time(), time.monotonic()
            name = f"{run}-{handler.replace('_', '-')}"
            harness.task(name, handler)
            status = harness.finished(name)
            assert status["phase"] == "Succeeded", status
            assert status["attempts"] == 1
            theirs = status["result"]
            result[handler] = [theirs["wall"] - ours[0], theirs["monotonic"] - ours[1]]
        return result

    true = pytest.approx(0, abs=60)
    stepped = pytest.approx(400, abs=60)
    assert offsets("before") == {handler: [true, true] for handler in HANDLERS}
    with PodClock(harness.kubectl, namespace, pod["metadata"]["name"]).stepped(400):
        assert offsets("stepped") == {handler: [stepped, true] for handler in HANDLERS}
    assert offsets("after") == {handler: [true, true] for handler in HANDLERS}
