"""Several informers as one."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.informer import Informer
from taskqueue.kubernetes.informer_group import InformerGroup

pytestmark = pytest.mark.looptime


def make() -> tuple[InformerGroup, list[Informer]]:
    group = InformerGroup(cast(ApiClient, None), ("/a", "/b"), cast(Any, "first"))
    return group, group._informers


async def test_the_group_is_synced_when_each_is(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = {"/a": 1.0, "/b": 5.0}

    async def run(self: Informer) -> None:
        await asyncio.sleep(delays[self._path])
        self.synced.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Informer, "run", run)
    group, _ = make()
    running = asyncio.create_task(group.run())
    await asyncio.sleep(4)
    assert not group.synced.is_set()
    await asyncio.sleep(2)
    assert group.synced.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_group_has_caught_up_when_each_has(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def catch_up(self: Informer) -> None:
        await asyncio.sleep(1)
        done.append(self._path)

    monkeypatch.setattr(Informer, "catch_up", catch_up)
    group, _ = make()
    await group.catch_up()
    assert sorted(done) == ["/a", "/b"]
    assert group.synced.is_set()


async def test_a_handler_is_that_of_each_and_a_name_is_found_in_any() -> None:
    group, informers = make()
    second = cast(Any, object())
    group.handler = second
    assert group.handler is second
    assert all(one.handler is second for one in informers)
    informers[1]._uids["ns", "x"] = "uid"
    assert group.uid_of(("ns", "x")) == "uid"
    assert group.uid_of(("ns", "y")) is None
