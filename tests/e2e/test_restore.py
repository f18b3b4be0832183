"""TaskQueues and Tasks that are created from a copy of others, as a restore does."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster


def test_a_copy_of_a_taskqueue_is_served_whatever_its_annotations_say(harness: Harness) -> None:
    """Its annotations say that it is known already."""
    harness.queue(workers=None)
    harness.ready()

    def annotations() -> dict[str, str]:
        metadata = harness.api.get(harness.path("taskqueues", "q"))["metadata"]
        found: dict[str, str] = metadata.get("annotations", {})
        return found

    harness.until(lambda: "taskqueue.dev/last-handled-configuration" in annotations(), what="known")
    body = harness.api.get(harness.path("taskqueues", "q"))
    body["metadata"] = {"name": "copy", "annotations": annotations()}
    harness.api.request("POST", harness.path("taskqueues"), body)
    harness.ready("copy")
