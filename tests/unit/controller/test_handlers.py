"""Which events of TaskQueues reach the engine."""

from collections.abc import Mapping
from typing import Any, cast

import kopf
import pytest

from taskqueue.controller import handlers
from taskqueue.controller.engine import Engine

KEY = ("shop", "q")


class FakeEngine:
    """Serves one TaskQueue, or none."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.put: list[str] = []
        self.removed: list[str] = []

    def knows(self, raw: Mapping[str, Any]) -> bool:
        metadata = raw["metadata"]
        assert (metadata["namespace"], metadata["name"]) == KEY
        return bool(metadata["uid"] == self.uid)

    def put_queue(self, raw: Mapping[str, Any]) -> None:
        self.put.append(raw["metadata"]["uid"])

    def remove_queue(self, key: tuple[str, str], uid: str) -> None:
        assert key == KEY
        self.removed.append(uid)


async def send(engine: FakeEngine, kind: str | None, uid: str, **metadata: str) -> None:
    registry = kopf.OperatorRegistry()
    handlers.register(registry, cast(Engine, engine))
    (handler,) = registry._watching.get_all_handlers()
    body: Any = {
        "metadata": {"namespace": "shop", "name": "q", "uid": uid, **metadata},
        "spec": {},
    }
    await cast(Any, handler.fn)(event={"type": kind, "object": body}, body=kopf.Body(body))


@pytest.mark.parametrize("kind", [None, "ADDED", "MODIFIED"])
@pytest.mark.parametrize("served", ["", "former"])
async def test_a_taskqueue_that_is_not_served_is_added_whatever_its_annotations_say(
    kind: str | None, served: str
) -> None:
    engine = FakeEngine(served)
    await send(engine, kind, "new")
    assert engine.put == ["new"]


async def test_events_of_a_taskqueue_that_is_served_change_nothing_by_themselves() -> None:
    engine = FakeEngine("a")
    await send(engine, "MODIFIED", "a")
    assert engine.put == []
    await send(engine, "MODIFIED", "a", deletionTimestamp="2026-01-01T00:00:00Z")
    assert engine.put == ["a"]


async def test_a_deleted_taskqueue_is_removed_and_not_added() -> None:
    engine = FakeEngine("")
    await send(engine, "DELETED", "a")
    assert (engine.put, engine.removed) == ([], ["a"])
