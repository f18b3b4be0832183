"""Which of several installations has a TaskQueue."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.queues.claims import QueueClaims, installation_id
from taskqueue.kubernetes.client import ApiClient, ApiError

pytestmark = pytest.mark.looptime

KEY, UID = ("shop", "q"), "uid-q"
PATH = "/apis/taskqueue.dev/v1alpha1/namespaces/shop/taskqueues/q"
A, B = installation_id("ops-a", "default"), installation_id("ops-b", "default")


class FakeApi:
    """Has one TaskQueue, and the rule of its schema: one name is not changed to another."""

    def __init__(self, holder: str = "") -> None:
        self.holder = holder
        self.problems: deque[ApiError] = deque()
        self.writes = 0

    async def merge(self, path: str, body: Any) -> dict[str, Any]:
        assert path == f"{PATH}/status"
        await asyncio.sleep(0)
        if self.problems:
            raise self.problems.popleft()
        wanted = body["status"]["installation"]
        if self.holder not in ("", wanted):
            raise ApiError(422, "Invalid", "another installation")
        self.holder = wanted
        self.writes += 1
        return self.object()

    async def get(self, path: str) -> dict[str, Any]:
        assert path == PATH
        return self.object()

    def object(self) -> dict[str, Any]:
        metadata = {"namespace": "shop", "name": "q", "uid": UID}
        return {"metadata": metadata, "status": {"installation": self.holder}}


def claims(api: FakeApi, installation: str = A) -> QueueClaims:
    return QueueClaims(cast(ApiClient, api), installation)


async def test_a_free_taskqueue_is_claimed_and_so_is_our_own() -> None:
    for holder in ("", A):
        api = FakeApi(holder)
        ours = claims(api)
        assert await ours.claim(KEY, UID) == A
        assert ours.is_held(UID)
        assert api.holder == A


async def test_that_of_another_installation_is_not_taken() -> None:
    api = FakeApi(B)
    ours = claims(api)
    assert await ours.claim(KEY, UID) == B
    assert not ours.is_held(UID)
    assert api.holder == B


async def test_a_deleted_taskqueue_has_no_installation() -> None:
    api = FakeApi()
    api.problems.append(ApiError(404, "NotFound", "gone"))
    assert await claims(api).claim(KEY, UID) == ""


async def test_a_claim_is_tried_until_the_api_server_answers() -> None:
    api = FakeApi()
    api.problems.extend(
        [
            ApiError(0, "Unreachable", "away"),
            ApiError(403, "Forbidden", "no"),
            ApiError(422, "", ""),
        ]
    )
    assert await claims(api).claim(KEY, UID) == A


@settings(deadline=None, max_examples=50)
@given(rounds=st.lists(st.tuples(st.booleans(), st.permutations(range(3))), max_size=5))
def test_of_several_installations_one_has_it(rounds: list[tuple[bool, list[int]]]) -> None:
    api = FakeApi()
    everyone = [claims(api, installation_id(f"ops-{number}", "default")) for number in range(3)]

    async def race() -> None:
        for is_cleared, order in rounds:
            if is_cleared:
                api.holder = ""
            await asyncio.gather(*(everyone[number].claim(KEY, UID) for number in order))
            held = [one.installation for one in everyone if one.is_held(UID)]
            assert held == [api.holder]

    asyncio.run(race())


def status(holder: str, uid: str = UID) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": "q", "uid": uid},
        "status": {"installation": holder},
    }


async def test_what_a_status_says_is_known_once_it_was_taken_note_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = claims(FakeApi())
    assert ours.is_known(status(""))
    assert ours.is_others(status(B))
    assert not ours.is_known(status(B))
    assert ours.add_other(KEY, UID, B)
    assert ours.is_known(status(B))
    assert not ours.add_other(KEY, UID, B)  # and is logged once
    assert [one.getMessage() for one in caplog.records] == ["queue.served_elsewhere"]
    assert not ours.is_known(status(B, uid="recreated"))
    assert not ours.discard(KEY, "recreated")
    assert ours.discard(KEY, UID)
    assert not ours.pop_other(KEY)


async def test_a_claim_that_somebody_has_cleared_is_not_known() -> None:
    api = FakeApi()
    ours = claims(api)
    await ours.claim(KEY, UID)
    assert ours.is_known(status(A))
    assert not ours.is_known(status(""))


def test_two_operators_with_the_default_name_are_two_installations() -> None:
    names = itertools.product(("ops-a", "ops-b"), ("default", "team"))
    assert len({installation_id(*one) for one in names}) == 4
