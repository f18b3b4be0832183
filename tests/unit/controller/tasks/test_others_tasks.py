"""Tasks of TaskQueues that another installation serves are kept as they were last shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.tasks.others_tasks import OthersTasks
from taskqueue.controller.tasks.tracked_task import SeenTask
from taskqueue.kubernetes.informer import Key
from tests.unit.controller.fakes import raw_task

OURS, THEIRS = ("shop", "q"), ("shop", "other")


class Handler:
    """Records what it is handed over."""

    def __init__(self) -> None:
        self.adopted: dict[str, int] = {}
        self.unreadable: set[str] = set()

    def adopt(self, seen: SeenTask) -> None:
        assert seen.task.uid not in self.adopted
        self.adopted[seen.task.uid] = seen.version

    def on_upserted(self, raw: dict[str, Any]) -> None:
        raise AssertionError("handed over by adopt")

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        self.unreadable.add(raw["metadata"]["uid"])

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        raise AssertionError("nothing is deleted by a hand-over")


def shown(name: str, queue: str, version: int) -> dict[str, Any]:
    raw = raw_task(name)
    raw["metadata"]["resourceVersion"] = str(version)
    raw["spec"]["queue"] = queue
    return raw


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["shown", "broken", "deleted"]),
        st.sampled_from("abc"),
        st.sampled_from(["q", "other"]),
    ),
    max_size=15,
)


@settings(deadline=None)
@given(changes=CHANGES)
def test_what_is_handed_over_is_what_was_last_shown(changes: list[tuple[str, str, str]]) -> None:
    others, last = OthersTasks(), dict[str, int]()
    others.add(THEIRS, ())
    for version, (kind, name, queue) in enumerate(changes, 1):
        # The TaskQueue of a Task never changes.
        uid, name = f"uid-{queue}-{name}", f"{queue}-{name}"
        if kind == "deleted":
            others.discard(uid)
            last.pop(uid, None)
            continue
        raw = shown(name, queue, version)
        if kind == "broken":
            del raw["spec"]["handler"]
        assert others.keep_raw(raw) == (queue == "other")
        if queue == "other":
            last[uid] = version if kind == "shown" else 0
    handler = Handler()
    asyncio.run(others.hand_over(THEIRS, handler))
    assert handler.adopted == {uid: version for uid, version in last.items() if version}
    assert handler.unreadable == {uid for uid, version in last.items() if not version}
    assert THEIRS not in others
    assert not others.keep_raw(shown("later", "other", 99))


def test_objects_without_a_readable_taskqueue_belong_to_none() -> None:
    others = OthersTasks()
    others.add(THEIRS, ())
    for spec in (None, "text", {}, {"queue": 7}):
        assert not others.keep_raw({**raw_task("a"), "spec": spec})


def test_a_taskqueue_that_is_left_again_meanwhile_is_handed_over_no_further() -> None:
    others, handler = OthersTasks(), Handler()
    others.add(THEIRS, ())
    for number in range(1200):
        others.keep_raw(shown(f"t{number}", "other", number + 1))

    async def leave_again() -> None:
        handing_over = asyncio.create_task(others.hand_over(THEIRS, handler))
        await asyncio.sleep(0)
        others.add(THEIRS, ())
        await handing_over

    asyncio.run(leave_again())
    assert 0 < len(handler.adopted) < 1200
    assert THEIRS in others
