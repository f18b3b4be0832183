from __future__ import annotations

import subprocess
import sys

import pytest

from taskqueue.worker.executors import descendants
from tests.unit.worker.children import alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children need Linux")


def test_an_orphan_that_comes_while_its_parent_ends_is_ended_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is seen of our children may be from before the orphan was one of them."""
    parent = subprocess.Popen(["true"])
    orphan = subprocess.Popen(["sleep", "60"])
    seen = iter([{parent.pid}])
    monkeypatch.setattr(
        descendants,
        "children",
        lambda: next(seen, {orphan.pid} if alive(orphan.pid) else set()),
    )
    try:
        parent.wait()  # so that it is found to have ended at the first look
        descendants.end_children(keep=(), seconds=10.0)
        assert not alive(orphan.pid)
    finally:
        orphan.kill()
        orphan.wait()
