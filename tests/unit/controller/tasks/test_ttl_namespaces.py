"""One namespace's expired Tasks do not hold up the deletion of another's, in virtual time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.tasks.ttl import DELETES_AT_ONCE, TtlController
from taskqueue.kubernetes.client import ApiClient, ApiError
from tests.unit.controller.fakes import now
from tests.unit.controller.virtual_time import VirtualLoop

#: How long a delete takes, in seconds.
_DELETE = 1.0


class FakeApi:
    """Deletes Tasks in a second each; some namespaces refuse."""

    def __init__(self, refusing: Collection[str]) -> None:
        self.refusing = refusing
        self.deleted: dict[str, float] = {}
        self.tries: defaultdict[str, int] = defaultdict(int)

    async def send(self, method: str, path: str, *, body: Any = None) -> bytes:
        namespace, _, name = path.split("/")[-3:]
        await asyncio.sleep(_DELETE)
        self.tries[namespace] += 1
        if namespace in self.refusing:
            raise ApiError(500, "", "no")
        self.deleted[name] = asyncio.get_running_loop().time()
        return b"{}"


def run(expired: dict[str, int], *, at: float, refusing: Collection[str] = ()) -> FakeApi:
    """Have Tasks of namespaces expire at once, and one of another namespace ``at`` a time."""
    loop, api = VirtualLoop(), FakeApi(refusing)

    async def delete() -> None:
        controller = TtlController(
            cast(ApiClient, api),
            clock=now,
            ttl_of=lambda queue: None,
            is_needed=lambda namespace, name: False,
            random=lambda: 1.0,
        )
        for namespace, count in expired.items():
            for number in range(count):
                name = f"{namespace}-{number}"
                add(controller, namespace, name, ttl=0)
        add(controller, "victim", "asked", ttl=round(at))
        running = asyncio.create_task(controller.run())
        await asyncio.sleep(at + 300)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    try:
        loop.run_until_complete(delete())
    finally:
        loop.close()
    return api


def add(controller: TtlController, namespace: str, name: str, *, ttl: int) -> None:
    queue = (namespace, "q")
    controller.add(namespace, name, f"uid-{name}", queue=queue, completed=now(), ttl=ttl)


FLOODS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 300), max_size=5)


@settings(deadline=None, max_examples=30)
@given(expired=FLOODS, at=st.integers(0, 9), refusing=st.sets(st.sampled_from("abcde")))
def test_a_task_waits_for_one_delete_of_each_other_namespace_at_most(
    expired: dict[str, int], at: int, refusing: set[str]
) -> None:
    api = run(expired, at=float(at), refusing=refusing)
    turns = 2 + len(expired) // DELETES_AT_ONCE
    assert api.deleted["asked"] - at <= turns * _DELETE + 0.1


def test_a_namespace_whose_deletes_fail_slows_down() -> None:
    api = run({"a": 300, "b": 300}, at=0.0, refusing={"a"})
    assert api.tries["a"] < 300
    assert api.tries["b"] == 300
