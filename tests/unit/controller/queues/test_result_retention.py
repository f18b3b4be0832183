"""The store of a TaskQueue's results: its Secret is looked at, and what is old is deleted."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.queues.result_retention import ResultRetention
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import Condition, QueueConfig, ResultsConfig
from taskqueue.results.connection import StoreConnection
from taskqueue.results.store import StoreError
from tests.unit.results.memory import MemoryStore

pytestmark = pytest.mark.looptime

NOW = 1_800_000_000.0
SECRET = "/api/v1/namespaces/shop/secrets/results"
CONFIG = QueueConfig(
    namespace="shop",
    name="q",
    uid="u",
    generation=1,
    results=ResultsConfig(secret="results", retention_seconds=1000),
)


def secret(**keys: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(text.encode()).decode() for key, text in keys.items()}}


class Api:
    """One Secret, or an error."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | ApiError = secret(uri="redis://:s3cret@store:6379/0")
        self.asked = 0

    async def get(self, path: str) -> dict[str, Any]:
        assert path == SECRET
        self.asked += 1
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


class Checked:
    """A retention, reconciled every second as the reconciler does it."""

    def __init__(self, config: QueueConfig = CONFIG) -> None:
        self.api = Api()
        self.store = MemoryStore()
        self.opened: list[StoreConnection] = []
        self.config = config
        self.retention = ResultRetention(
            cast(ApiClient, self.api), lambda: NOW, open_result_store=self._open
        )

    async def run(self, seconds: int) -> Condition | None:
        for _ in range(seconds):
            self.retention.reconcile(self.config)
            await asyncio.sleep(1)
        return self.retention.condition

    def _open(self, connection: StoreConnection) -> MemoryStore:
        self.opened.append(connection)
        return self.store


@pytest.fixture
async def checked() -> AsyncIterator[Checked]:
    made = Checked()
    yield made
    made.retention.close()


async def test_a_queue_without_a_store_costs_nothing() -> None:
    made = Checked(replace(CONFIG, results=ResultsConfig(retention_seconds=1000)))
    assert await made.run(200) is None
    assert made.api.asked == 0
    assert not asyncio.all_tasks() - {asyncio.current_task()}


async def test_what_is_older_than_the_retention_is_deleted_again_and_again(
    checked: Checked,
) -> None:
    condition = await checked.run(450)
    assert 3 <= len(checked.store.deleted) <= 5  # each 100 s, a tenth of the retention
    assert set(checked.store.deleted) == {("shop/q/", NOW - 1000)}
    assert checked.store.closed == len(checked.opened) == len(checked.store.deleted)
    assert condition == Condition(
        "ResultStoreReady", True, "SecretValid", "results go to redis://store:6379/0"
    )
    assert 14 <= checked.api.asked <= 16


async def test_without_a_retention_nothing_is_deleted(checked: Checked) -> None:
    checked.config = replace(CONFIG, results=ResultsConfig(secret="results"))
    condition = await checked.run(200)
    assert not checked.opened
    assert condition is not None
    assert condition.status


@pytest.mark.parametrize(
    ("answer", "reason", "part"),
    [
        (ApiError(404, "NotFound", "no"), "SecretNotFound", "create it with the key uri"),
        (ApiError(403, "Forbidden", "no"), "SecretForbidden", "grant get on secrets"),
        (secret(), "SecretInvalid", "the key uri must be an address"),
        (secret(uri="mysql://u:s3cret@h"), "SecretInvalid", "begins with mysql://"),
        ({"data": {"uri": "/w=="}}, "SecretInvalid", "not UTF-8"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_a_condition_which_goes_when_it_can(
    checked: Checked, answer: Any, reason: str, part: str
) -> None:
    well, checked.api.answer = checked.api.answer, answer
    condition = await checked.run(3)
    assert condition is not None
    assert (condition.status, condition.reason) == (False, reason)
    assert "Secret shop/results (spec.results.store.connectionSecret)" in condition.message
    assert part in condition.message
    assert "s3cret" not in condition.message
    checked.api.answer = well
    condition = await checked.run(40)
    assert condition is not None
    assert condition.status


async def test_an_api_server_that_is_away_says_nothing_about_the_store(checked: Checked) -> None:
    before = await checked.run(3)
    checked.api.answer = ApiError(503, "Unavailable", "no")
    assert await checked.run(100) == before


async def test_a_store_that_is_away_is_a_condition_without_its_words(checked: Checked) -> None:
    checked.store.away_until = asyncio.get_running_loop().time() + 200
    condition = await checked.run(190)
    assert condition is not None
    assert (condition.status, condition.reason) == (False, "StoreUnavailable")
    assert "redis://store:6379/0 is not available" in condition.message
    checked.config = replace(CONFIG)
    condition = await checked.run(150)
    assert condition is not None
    assert condition.status
    assert checked.store.deleted


async def test_a_store_that_hangs_holds_up_nothing_and_is_left_after_a_while(
    checked: Checked,
) -> None:
    checked.store.call_seconds = 10_000
    begun = asyncio.get_running_loop().time()
    await checked.run(400)
    assert asyncio.get_running_loop().time() - begun == pytest.approx(400)
    assert 2 <= len(checked.store.calls) <= 4
    assert checked.store.closed >= len(checked.store.calls) - 1
    checked.retention.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "keys",
    [
        {"uri": "s3://bucket/prefix"},
        {"uri": "postgresql://u:p@db/tasks?sslrootcert=/proc/self/fd/1"},
    ],
)
async def test_a_store_that_would_use_something_of_the_operators_is_not_opened(
    checked: Checked, keys: dict[str, str]
) -> None:
    checked.api.answer = secret(**keys)
    condition = await checked.run(200)
    assert not checked.opened
    assert condition is not None
    assert not condition.status
    assert "is not deleted" in condition.message
    checked.config = replace(CONFIG, results=ResultsConfig(secret="results"))
    condition = await checked.run(3)
    assert condition is not None
    assert condition.status  # workers may use it: it is theirs


async def test_a_changed_store_is_looked_at_at_once(checked: Checked) -> None:
    await checked.run(3)
    asked = checked.api.asked
    checked.config = replace(CONFIG, results=replace(CONFIG.results, retention_seconds=60))
    await checked.run(1)
    assert checked.api.asked == asked + 1
    checked.config = replace(CONFIG, results=ResultsConfig())
    assert await checked.run(1) is None


async def test_an_error_of_the_store_that_opens_is_a_condition(checked: Checked) -> None:
    def refuse(connection: StoreConnection) -> MemoryStore:
        raise StoreError("no library", transient=False)

    checked.retention._open = refuse
    condition = await checked.run(200)
    assert condition is not None
    assert condition.reason == "StoreUnavailable"
