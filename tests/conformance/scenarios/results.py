"""Point L: results that no status takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import Any

from taskqueue.contract.outcome import EventKind
from taskqueue.model.result import result_key
from taskqueue.results.connection import open_store
from tests.conformance.broker_env import NAMESPACE
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario
from tests.integration.results.servers import Server, running

_LARGE = {"text": "x" * 50_000}
_TOO_LARGE = ("ResultTooLarge", "taskqueue.ResultTooLarge")


async def large_results(scenario: Scenario) -> None:
    """No worker has to know a store, or Redis: then the attempt has failed."""
    worker = await scenario.ready()
    async with scenario.check("without a store a large result fails for good"):
        token = await scenario.publish("echo", payload=_LARGE)
        await scenario.ends_with(token, EventKind.FAILED)
        _expect_too_large(_data(scenario, token, EventKind.FAILED))
    await scenario.wait_settled()
    await worker.kill()
    if shutil.which("redis-server") is None:
        return
    with running("redis") as server:
        uri = server.connection().uri
        await scenario.ready(TASKQUEUE_RESULTS_URI=uri, TASKQUEUE_RESULTS_RETENTION_SECONDS="600")
        async with scenario.check("a large result is in the store before its outcome"):
            token = await scenario.publish("echo", payload=_LARGE)
            await _expect_stored(scenario, token, server)
        async with scenario.check("a small result is in its outcome all the same"):
            token = await scenario.publish("echo", payload={"a": 1})
            await scenario.ends_with(token, EventKind.SUCCEEDED)
            data = _data(scenario, token, EventKind.SUCCEEDED)
            expect(data.get("result") == {"a": 1}, f"the result is {data.get('result')}")
        await scenario.wait_settled()


async def _expect_stored(scenario: Scenario, token: str, server: Server) -> None:
    event = await scenario.end(token)
    data = _data(scenario, token, event.kind)
    if event.kind is EventKind.FAILED:
        _expect_too_large(data)
        return
    reference = data.get("resultRef")
    expect(isinstance(reference, dict), f"the outcome has no resultRef: {data}")
    store = open_store(server.connection())
    try:
        found = await store.get(
            result_key(
                namespace=NAMESPACE,
                queue=scenario.name,
                uid=data["uid"],
                attempt=data["attempt"],
                epoch=data["epoch"],
            )
        )
    finally:
        await store.close()
    expect(found is not None, "there is nothing under its key")
    assert found is not None
    expect(json.loads(found.body) == _LARGE, "something else is under its key")
    said = {
        "sizeBytes": len(found.body),
        "contentType": "application/json",
        "sha256": hashlib.sha256(found.body).hexdigest(),
    }
    expect(reference == said, f"the outcome says {reference}, and {said} is there")


def _expect_too_large(data: dict[str, Any]) -> None:
    error = data["error"]
    expect(error["type"] in _TOO_LARGE, f"the error is {error}")
    expect(error.get("retryable") is False, f"the error is {error}")


def _data(scenario: Scenario, token: str, kind: EventKind) -> dict[str, Any]:
    data: dict[str, Any] = scenario.broker_env.inbox.events(token, kind)[0].envelope["data"]
    return data
