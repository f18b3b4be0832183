"""Broker users of workers have what the contract says, and nothing else, at every moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.worker_users import permissions, topic_permissions
from taskqueue.direct.broker_users import BrokerUsers
from taskqueue.direct.management_http import ManagementClient, ManagementError
from tests.unit.direct.fake_management import BROKER, ENDPOINT, FakeManagement

OWNER = {"namespace": "shop", "queue": "mails"}
NAME = "worker"
PATTERNS = topic_permissions("shop", "mails")

#: What somebody, or an earlier TaskQueue, may have left for the user.
OTHER_PERMISSIONS = st.dictionaries(st.sampled_from(["v", "/", "w"]), st.just({"write": ".*"}))
OTHER_TOPICS = st.dictionaries(
    st.sampled_from(["v", "/"]),
    st.dictionaries(st.sampled_from([*PATTERNS, "taskqueue.work"]), st.just(".*"), min_size=1),
)


def users(broker: FakeManagement) -> BrokerUsers:
    return BrokerUsers(broker.connect())


def assert_exact(broker: FakeManagement) -> None:
    assert {vhost: held for (vhost, name), held in broker.permissions.items() if name == NAME} == {
        "v": permissions("shop", "mails")
    }
    assert {vhost: held for (vhost, name), held in broker.topics.items() if name == NAME} == {
        "v": dict(PATTERNS)
    }


@given(
    held=OTHER_PERMISSIONS,
    topics=OTHER_TOPICS,
    lost=st.lists(st.integers(0, 12), max_size=4),
)
def test_a_user_gets_exactly_its_permissions_whatever_it_had_and_whichever_request_is_lost(
    held: dict[str, dict[str, str]], topics: dict[str, dict[str, str]], lost: list[int]
) -> None:
    broker = FakeManagement()
    broker.users[NAME] = "old"
    broker.permissions |= {(vhost, NAME): dict(value) for vhost, value in held.items()}
    broker.topics |= {(vhost, NAME): dict(value) for vhost, value in topics.items()}

    def before(request: str) -> None:
        if lost and len(broker.asked) >= lost[0]:
            broker.asked.clear()
            lost.pop(0)
            raise ManagementError("the connection failed")

    broker.before = before

    async def put() -> None:
        while True:
            try:
                return await users(broker).put(NAME, "new", **OWNER)
            except ManagementError:
                continue

    asyncio.run(put())
    assert broker.logs_in(NAME, "new")
    assert_exact(broker)


def test_a_new_user_may_never_use_any_routing_key() -> None:
    broker = FakeManagement()
    seen: list[bool] = []

    def after() -> None:
        if ("v", NAME) in broker.permissions:
            seen.append(set(broker.topics.get(("v", NAME), ())) == set(PATTERNS))

    broker.after = after
    asyncio.run(users(broker).put(NAME, "pw", **OWNER))
    assert seen == [True]


async def test_a_revoked_password_leaves_the_user_and_what_it_may() -> None:
    broker = FakeManagement()
    await users(broker).put(NAME, "pw", **OWNER)
    await users(broker).revoke_password(NAME)
    assert not broker.logs_in(NAME, "pw")
    assert_exact(broker)
    await users(broker).revoke_password("nobody")
    assert "nobody" not in broker.users


async def test_users_are_deleted_once_or_again() -> None:
    broker = FakeManagement()
    await users(broker).put(NAME, "pw", **OWNER)
    for _ in range(2):
        await users(broker).delete([NAME, "nobody"])
        assert (broker.users, broker.permissions, broker.topics) == ({"op": "p"}, {}, {})


class Pages:
    """A list of users in pages, as newer brokers have it."""

    endpoint = replace(ENDPOINT, broker=BROKER)

    def __init__(self, pages: list[Any]) -> None:
        self._pages = pages

    async def get(self, *path: str, query: dict[str, str]) -> Any:
        return {"page_count": len(self._pages), "items": self._pages[int(query["page"]) - 1]}


async def test_users_are_listed_by_their_prefix_in_pages() -> None:
    pages = Pages([[{"name": "a.1"}, {"name": "b.1"}], [{"name": "a.2"}]])
    assert await BrokerUsers(cast(ManagementClient, pages)).list_names("a.") == ["a.1", "a.2"]


@pytest.mark.parametrize("answer", [["a.1"], "a.1", {"name": "a.1"}, None])
async def test_an_answer_that_is_no_list_of_users_is_refused(answer: Any) -> None:
    pages = Pages([answer])
    with pytest.raises(ManagementError, match="unexpected answer"):
        await BrokerUsers(cast(ManagementClient, pages)).list_names("a.")
