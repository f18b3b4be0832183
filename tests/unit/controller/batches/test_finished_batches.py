"""Finished batches are deleted when their time to live is over, and no others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.batches.finished_batches import FinishedBatches
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.batch import Batch, BatchState
from taskqueue.model.task import Phase

BATCH = Batch(
    namespace="shop", name="b", uid="u", generation=1, created=0.0, queue="q", handler="h"
)
ENDED = BatchState(phase=Phase.SUCCEEDED, completion_time=1000.0)


class FakeApi:
    """Answers deletes."""

    def __init__(self) -> None:
        self.deleted: list[tuple[str, str]] = []
        self.status = 0

    async def send(self, method: str, path: str, *, body: dict[str, Any]) -> bytes:
        assert method == "DELETE"
        self.deleted.append((path.rpartition("/")[2], body["preconditions"]["uid"]))
        if self.status:
            raise ApiError(self.status, "No", "no")
        return b""


class Finished:
    """What is deleted at which time."""

    def __init__(self, default: int | None = None) -> None:
        self.api = FakeApi()
        self.now = 1000.0
        self.finished = FinishedBatches(
            cast(ApiClient, self.api), clock=lambda: self.now, default_ttl=lambda _: default
        )

    def deleted_at(self, now: float) -> list[tuple[str, str]]:
        self.now, self.api.deleted = now, []
        asyncio.run(self.finished.delete_due())
        return self.api.deleted


def test_a_batch_is_deleted_when_its_time_is_over_and_once() -> None:
    world = Finished()
    world.finished.put(replace(BATCH, ttl_seconds=60), ENDED)
    assert world.deleted_at(1059.0) == []
    assert world.deleted_at(1060.0) == [("b", "u")]
    assert world.deleted_at(2000.0) == []


@pytest.mark.parametrize(("own", "default", "at"), [(None, 5, 1005.0), (9, 5, 1009.0)])
def test_the_default_of_the_queue_is_for_batches_without_a_time_of_their_own(
    own: int | None, default: int, at: float
) -> None:
    world = Finished(default)
    world.finished.put(replace(BATCH, ttl_seconds=own), ENDED)
    assert world.deleted_at(at - 1) == []
    assert world.deleted_at(at) == [("b", "u")]


def test_without_a_time_to_live_a_batch_stays() -> None:
    world = Finished()
    world.finished.put(BATCH, ENDED)
    assert world.deleted_at(1e12) == []


@pytest.mark.parametrize("status", [404, 409])
def test_what_is_deleted_already_or_replaced_is_left(status: int) -> None:
    world = Finished(0)
    world.api.status = status
    world.finished.put(BATCH, ENDED)
    assert len(world.deleted_at(1000.0)) == 1
    assert world.deleted_at(2000.0) == []


def test_a_delete_that_fails_is_tried_again_later() -> None:
    world = Finished(0)
    world.api.status = 500
    world.finished.put(BATCH, ENDED)
    assert len(world.deleted_at(1000.0)) == 1
    assert world.deleted_at(1001.0) == []
    world.api.status = 0
    assert len(world.deleted_at(1016.0)) == 1


def test_what_was_deleted_by_hand_is_forgotten() -> None:
    world = Finished(0)
    world.finished.put(BATCH, ENDED)
    world.finished.discard("u")
    assert world.deleted_at(2000.0) == []
