"""TaskBatches of a test namespace."""

from __future__ import annotations

from typing import Any

from tests.e2e.api import Body
from tests.e2e.harness import Harness

_ENDS = ("Succeeded", "Failed", "Cancelled")


def create(harness: Harness, name: str, handler: str, **spec: Any) -> None:
    """Create a TaskBatch."""
    template = {"spec": {"handler": handler, "retry": {"maxAttempts": 1}}}
    harness.api.request(
        "POST",
        harness.path("taskbatches"),
        {
            "apiVersion": f"{harness.group}/v1alpha1",
            "kind": "TaskBatch",
            "metadata": {"name": name},
            "spec": {"queue": "q", "template": template, **spec},
        },
    )


def status_of(harness: Harness, name: str) -> Body:
    """Return the status of a TaskBatch."""
    status: Body = harness.api.get(harness.path("taskbatches", name)).get("status") or {}
    return status


def ended(harness: Harness, name: str, *, seconds: float = 120) -> Body:
    """Return the final status of a TaskBatch."""
    harness.until(
        lambda: status_of(harness, name).get("phase") in _ENDS,
        what=f"TaskBatch {name} ended",
        seconds=seconds,
    )
    return status_of(harness, name)
