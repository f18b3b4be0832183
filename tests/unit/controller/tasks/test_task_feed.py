"""What a standby knows of the Tasks, and what it hands over when it leads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.tasks.task_feed import StandbyTasks
from taskqueue.controller.tasks.tracked_task import SeenTask
from taskqueue.kubernetes.informer import Key
from taskqueue.limits import PAYLOAD_BYTES
from tests.unit.controller.fakes import raw_task


class Handler:
    """Records what it is handed over."""

    def __init__(self) -> None:
        self.adopted: list[SeenTask] = []
        self.unreadable: dict[str, str] = {}

    def adopt(self, seen: SeenTask) -> None:
        self.adopted.append(seen)

    def on_upserted(self, raw: dict[str, Any]) -> None:
        raise AssertionError("shown during the hand-over")

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        self.unreadable[raw["metadata"]["uid"]] = problem

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        raise AssertionError("shown during the hand-over")


def shown(name: str, version: int, **status: Any) -> dict[str, Any]:
    raw = raw_task(name)
    raw["metadata"]["resourceVersion"] = str(version)
    raw["status"] = {"phase": "Pending", "observedGeneration": 1, **status}
    return raw


def handed_over(tasks: StandbyTasks) -> Handler:
    handler = Handler()
    asyncio.run(tasks.hand_over(handler))
    return handler


CHANGES = st.lists(
    st.tuples(st.sampled_from(["shown", "broken", "deleted"]), st.sampled_from("abc")), max_size=12
)


@settings(deadline=None)
@given(changes=CHANGES)
def test_a_standby_hands_over_each_task_as_it_was_last_shown(
    changes: list[tuple[str, str]],
) -> None:
    tasks = StandbyTasks()
    last: dict[str, tuple[str, int]] = {}
    for version, (kind, name) in enumerate(changes, 1):
        raw = shown(name, version, epoch=version)
        if kind == "deleted":
            tasks.on_deleted(("shop", name), f"uid-{name}")
            last.pop(name, None)
            continue
        if kind == "broken":
            del raw["spec"]["handler"]
        tasks.on_upserted(raw)
        last[name] = kind, version
    handler = handed_over(tasks)
    adopted = {one.task.name: one for one in handler.adopted}
    assert len(adopted) == len(handler.adopted)
    assert {name: (one.version, one.task.status.epoch) for name, one in adopted.items()} == {
        name: (version, version) for name, (kind, version) in last.items() if kind == "shown"
    }
    broken = {f"uid-{name}" for name, (kind, _) in last.items() if kind == "broken"}
    assert handler.unreadable.keys() == broken


def test_a_standby_keeps_no_payload_but_whether_it_is_refused() -> None:
    tasks = StandbyTasks()
    tasks.on_upserted(raw_task("small", payload={"text": "unlikely"}))
    tasks.on_upserted(raw_task("large", payload={"text": "x" * PAYLOAD_BYTES}))
    handler = handed_over(tasks)
    problems = {one.task.name: one.problem for one in handler.adopted}
    assert problems["small"] == ""
    assert problems["large"]
    assert "unlikely" not in repr(handler.adopted)


def test_a_standby_keeps_of_an_unreadable_task_what_identifies_it() -> None:
    tasks = StandbyTasks()
    raw = raw_task("t")
    tasks.on_unreadable({**raw, "spec": {"payload": "unlikely"}}, "it is too large")
    assert "unlikely" not in repr(vars(tasks))
    assert handed_over(tasks).unreadable == {"uid-t": "it is too large"}
