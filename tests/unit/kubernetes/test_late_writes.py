"""A process that may not lead any more sends no write."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from taskqueue.kubernetes.client import NOT_LEADING, ApiError
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteResult, Written
from tests.unit.kubernetes.fake_api import FakeApi, eventually, make, serve


@pytest.mark.parametrize("method", ["PATCH", "POST", "PUT", "DELETE"])
async def test_process_that_may_not_lead_reads_and_writes_nothing(method: str) -> None:
    api = FakeApi(objects={"a": make("a")})
    api.gate.set()
    async with serve(api, may_write=lambda: False) as client:
        with pytest.raises(ApiError, match="another operator may lead") as refused:
            await client.send(method, "/a", body={})
        assert (refused.value.reason, refused.value.transient) == (NOT_LEADING, True)
        assert (await client.get("/things", limit="10"))["items"]
    assert not api.patches


async def test_statuses_that_waited_while_a_leader_was_paused_are_not_written_by_it() -> None:
    leads, api = True, FakeApi()
    results: list[WriteResult] = []
    async with serve(api, max_connections=2, may_write=lambda: leads) as client:
        writer = StatusUpdater(client, concurrency=2)
        running = asyncio.create_task(writer.run())
        for number in range(6):
            writer.put(f"/o{number}", b"{}", results.append)
        await eventually(lambda: api.under_way == 2)
        leads = False  # it was paused, and another has acquired the Lease
        api.answers.extend([(500, {}), (200, {})])
        api.gate.set()
        await eventually(lambda: len(api.patches) == 2 and not api.under_way)
        await eventually(lambda: len(results) == 1)
        assert (len(api.patches), len(writer)) == (2, 5)
        leads = True
        await eventually(lambda: len(results) == 6)
        assert results[1:] == [Written()] * 5
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
